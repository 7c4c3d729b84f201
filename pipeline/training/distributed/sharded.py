"""Weights that no process has as a whole (ZeRO-3, FSDP): gathered to be kept or published, loaded to be looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from pipeline.artifacts import Model
from pipeline.errors import StageError
from pipeline.models import loading
from pipeline.models.loading import State


class KnownHead(TrainerCallback):
    """TRL's losses read the head's weights by themselves, without the head's forward pass: ZeRO-3 has to be told.

    Else they are taken apart again before their gradient arrives, unless something before has left them whole.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if args.deepspeed_plugin is None or args.deepspeed_plugin.zero_stage != 3:
            return
        from deepspeed import zero

        whole = model.get_base_model() if hasattr(model, "peft_config") else model
        for weight in whole.get_output_embeddings().parameters():
            zero.register_external_parameter(whole, weight)


def is_sharded(trainer: Any) -> bool:
    return _by_zero3(trainer) or bool(trainer.is_fsdp_enabled)


@contextmanager
def loaded(trainer: Any, model: Model, dtype: str) -> Iterator[Any]:
    """One more model for forward passes, shared among the processes as the trained one is. A call of all of them."""
    module = loading.open_model(model, dtype)
    if not _by_zero3(trainer):
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        yield fsdp2_prepare_model(trainer.accelerator, module)
        return
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from trl.models.utils import prepare_deepspeed

    engine = prepare_deepspeed(module, trainer.accelerator)
    try:
        yield engine
    finally:
        engine.destroy()
        FWD_MODULE_STACK.remove(
            module
        )  # which DeepSpeed leaves there, and all of its weights with it


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
    named = trainer.model.named_parameters(
        remove_duplicate=False
    )  # a tied one under each of its names
    own = {name: weight for name, weight in named if weight.requires_grad}
    if whole is None:
        return {name: weight.data for name, weight in own.items()}
    found = {name: weight for name, weight in whole.items() if name in own}
    if whole and {id(own[name]) for name in found} != {id(weight) for weight in own.values()}:
        lost = min(own.keys() - found.keys())
        raise StageError(
            f"train: the weights that were gathered lack {lost}: what is kept would not be what was trained."
        )
    return found


def load_whole_again(trainer: Any) -> None:
    """While ZeRO-3 is on, `from_pretrained` waits for the other processes, and those have ended when we merge."""
    if _by_zero3(trainer):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _by_zero3(trainer: Any) -> bool:
    return bool(
        trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    )
