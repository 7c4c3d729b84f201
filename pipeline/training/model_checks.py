"""What a model's config tells without its weights: its modules, on no device; and what is refused by that already."""

import re
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.config import LoraAdapter, TrainConfig
from pipeline.config.launch import SHARDED
from pipeline.errors import UserError
from pipeline.models import loading
from pipeline.models.quantization import read_quantization

if TYPE_CHECKING:
    import polars as pl


_UNNAMED = "no module of this model has that name"


def check(cfg: TrainConfig, init: Model, ids: "list[pl.Series]") -> None:
    """Before any weight is read: the adapter fits the model, and the tokens are the model's."""
    module = blueprint(init)
    loading.check_vocabulary(module, ids, "train")
    if not isinstance(cfg.adapter, LoraAdapter):
        return
    if init.adapter:
        loading.check_resumed_adapter(init, cfg.adapter)
    else:
        check_targets(module, cfg.adapter.targets)


def check_shared(cfg: TrainConfig, held_to: Model) -> None:
    """Packed weights are not taken apart, and unpacked ones would be another reference."""
    if cfg.runtime.launch in SHARDED and read_quantization(held_to):
        raise UserError(
            f"train.runtime.launch={cfg.runtime.launch} shares the reference's weights too, and those under "
            f"{held_to.path.parent.name}/{held_to.path.name} are packed into few bits.\n"
            f"  Give train.runtime.launch=ddp or zero2, which leave it whole in each process."
        )


def blueprint(model: Model) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = {"trust_remote_code": model.remote_code}
    config = AutoConfig.from_pretrained(model.weights, revision=model.revision, **trusted)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **trusted)


def check_targets(module: Any, targets: str | list[str]) -> None:
    if targets == "all-linear":
        return
    names = [name for name, _ in module.named_modules() if name]
    leaves = sorted(
        {name.rpartition(".")[2] for name, part in module.named_modules() if _is_linear(part)}
    )
    head = next(
        (name for name, part in module.named_modules() if part is module.get_output_embeddings()),
        None,
    )
    for target in [targets] if isinstance(targets, str) else targets:
        hits = [name for name in names if _targets(target, name, pattern=isinstance(targets, str))]
        if not hits or head in hits:
            unnamed = (
                "no module's whole name is like that" if isinstance(targets, str) else _UNNAMED
            )
            why = "its adapter would never be trained by TRL" if hits else unnamed
            known = ", ".join(leaf for leaf in leaves if leaf != head)
            listed = (
                ", in brackets" if isinstance(targets, str) else ""
            )  # without them it is a pattern
            raise UserError(
                f"train.adapter.targets: {target}: {why}.\n"
                f"  Expected names of linear layers{listed} ({known}), or all-linear."
            )


def _targets(target: str, name: str, pattern: bool) -> bool:
    """As PEFT reads it: one string is a pattern for the whole name, a list holds last parts of names."""
    return (
        bool(re.fullmatch(target, name))
        if pattern
        else name == target or name.endswith(f".{target}")
    )


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
