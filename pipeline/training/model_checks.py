"""Checks of a model that its config alone allows, without reading weights or using a device."""

from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Model
from pipeline.config import LoraAdapter, TrainConfig
from pipeline.config.launch import SHARDED_WEIGHTS
from pipeline.errors import UserError
from pipeline.models import loading, lora_targets
from pipeline.models.quantization import read_quantization

if TYPE_CHECKING:
    import polars as pl


def check_model(cfg: TrainConfig, init: Model, ids: "list[pl.Series]") -> None:
    """Check that the adapter fits the model and that the token ids are in its vocabulary."""
    module = build_on_meta(init)
    loading.check_vocabulary(module, ids, "train")
    if not isinstance(cfg.adapter, LoraAdapter):
        return
    if init.adapter:
        loading.check_resumed_adapter(init, cfg.adapter, f"{cfg.knob}.adapter")
    else:
        check_targets(module, cfg.adapter.targets, f"{cfg.knob}.adapter.targets")


def check_shardable(cfg: TrainConfig, reference: Model) -> None:
    """Refuse to shard a quantised reference: packed weights cannot be, and unpacked ones differ."""
    if cfg.runtime.launch in SHARDED_WEIGHTS and read_quantization(reference):
        raise UserError(
            f"{cfg.knob}.runtime.launch={cfg.runtime.launch} shares the reference's weights too,"
            f" and those under {reference.path.parent.name}/{reference.path.name} are quantised.\n"
            f"  Give {cfg.knob}.runtime.launch=ddp or zero2, which leave it whole in each process."
        )


def build_on_meta(model: Model) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = {"trust_remote_code": model.remote_code}
    config = AutoConfig.from_pretrained(model.weights, revision=model.revision, **trusted)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **trusted)


def check_targets(module: Any, targets: str | list[str], knob: str) -> None:
    parts = [(name, part) for name, part in module.named_modules() if name]
    linear = [name for name, part in parts if _is_linear(part)]
    output = module.get_output_embeddings()
    head = next((name for name, part in parts if part is output), None)
    names = [name for name, _ in parts]
    if fault := lora_targets.explain_unknown_target(targets, names, linear, head, knob):
        raise UserError(fault)


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
