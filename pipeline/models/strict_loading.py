"""Load a checkpoint, refusing missing weights: transformers would fill them at random."""

from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import UserError, pluralize


class CheckpointSource(Protocol):
    """A checkpoint's location and whether its own code may run, such as a Model artifact."""

    @property
    def weights(self) -> Path | str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def remote_code(self) -> bool: ...


def load_strict(
    model_class: Any, source: CheckpointSource, dtype: str, new_head: bool = False, **options: Any
) -> Any:
    """`model_class` is a class such as AutoModelForCausalLM, which also gets `options`.

    With `new_head` the weights of its head may be random.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    module, info = model_class.from_pretrained(
        source.weights,
        revision=source.revision,
        dtype=getattr(torch, dtype),
        trust_remote_code=source.remote_code,
        output_loading_info=True,
        **options,
    )
    prefix = f"{module.base_model_prefix}." if new_head else ""
    if missing := sorted(name for name in info["missing_keys"] if name.startswith(prefix)):
        complete = "a complete checkpoint"
        if not new_head:
            complete += f", as {model_class.__name__} saves it"
        raise UserError(
            f"{source.weights}: its weights lack {pluralize(len(missing), 'tensor')}"
            f" ({missing[0]} is one), which would be random.\n  Give {complete}."
        )
    return module
