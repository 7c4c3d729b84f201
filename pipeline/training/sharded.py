"""Weights that no process has whole (ZeRO-3, FSDP): taken apart at the first step, gathered to be kept or published."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.training.models import State


@contextmanager
def still_whole(trainer: Any) -> Iterator[None]:
    """Before the first step: TRL's fused head asks each weight where ZeRO-3 has put it, which has not yet begun."""
    if not _by_zero3(trainer):
        yield
        return
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    untouched = [weight for weight in trainer.model.parameters() if not hasattr(weight, "ds_status")]
    for weight in untouched:
        weight.ds_status = ZeroParamStatus.AVAILABLE
    try:
        yield
    finally:
        for weight in untouched:
            del weight.ds_status


def gathered(trainer: Any) -> State | None:
    """Every weight by name, on the first process; None where the module has them itself. A call of all processes."""
    accelerator = trainer.accelerator
    if _by_zero3(trainer):
        return accelerator.get_state_dict(trainer.deepspeed) or {}
    if trainer.is_fsdp_enabled:
        return accelerator.get_state_dict(trainer.model) or {}
    return None


def trained(trainer: Any, whole: State | None) -> State:
    """Of these, or of the module's own where it has them itself, the weights that are trained."""
    named = trainer.model.named_parameters(remove_duplicate=False)  # a tied one under each of its names
    own = {name: weight.data for name, weight in named if weight.requires_grad}
    return own if whole is None else {name: weight for name, weight in whole.items() if name in own}


def load_whole_again(trainer: Any) -> None:
    """While ZeRO-3 is on, `from_pretrained` waits for the other processes, and those have ended when we merge."""
    if _by_zero3(trainer):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _by_zero3(trainer: Any) -> bool:
    return bool(trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)
