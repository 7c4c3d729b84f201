"""A checkpoint as a torch module, whole or not at all: transformers fills what its weights lack with random numbers."""

from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError, pluralize


class Place(Protocol):
    """Where a checkpoint lies and whether its own code may run: a Model artifact knows, for one."""

    @property
    def weights(self) -> Path | str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def remote_code(self) -> bool: ...


def whole(kind: Any, place: Place, dtype: str, new_head: bool = False, **more: Any) -> Any:
    """`kind` is a class such as AutoModelForCausalLM, `more` what it is told besides; a new head may be random."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    module, loading = kind.from_pretrained(
        place.weights,
        revision=place.revision,
        dtype=getattr(torch, dtype),
        trust_remote_code=place.remote_code,
        output_loading_info=True,
        **more,
    )
    needed = f"{module.base_model_prefix}." if new_head else ""
    if missing := sorted(name for name in loading["missing_keys"] if name.startswith(needed)):
        raise UserError(
            f"{place.weights}: its weights lack {pluralize(len(missing), 'tensor')} ({missing[0]} is one), which would be"
            f" random.\n  Give a checkpoint that is whole{'' if new_head else f', as {kind.__name__} saves it'}."
        )
    return module
