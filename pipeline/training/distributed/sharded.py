"""Sharded weights (ZeRO-3, FSDP): gather them to save or publish, load a reference in shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from pipeline.artifacts import Model
from pipeline.errors import StageError
from pipeline.models import loading
from pipeline.models.loading import State


class HeadRegistration(TrainerCallback):
    """Registers the output head's weights with ZeRO-3.

    TRL's losses read these weights without the head's forward pass. Unregistered, ZeRO-3 may
    release them before their gradient arrives.
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
    return _uses_zero3(trainer) or bool(trainer.is_fsdp_enabled)


@contextmanager
def load_sharded(trainer: Any, model: Model, dtype: str) -> Iterator[Any]:
    """One more model for forward passes, sharded like the trained one. All processes call this."""
    module = loading.open_model(model, dtype)
    if not _uses_zero3(trainer):
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
        FWD_MODULE_STACK.remove(module)  # DeepSpeed leaves it there with all of its weights


def gather_weights(trainer: Any) -> State | None:
    """Every weight by name, on the first process. All processes call this.

    None where weights are not sharded and the module has them all.
    """
    accelerator = trainer.accelerator
    if _uses_zero3(trainer):
        return accelerator.get_state_dict(trainer.deepspeed) or {}
    if trainer.is_fsdp_enabled:
        return accelerator.get_state_dict(trainer.model) or {}
    return None


def select_trained(trainer: Any, whole: State | None) -> State:
    """The trained weights among the gathered ones; of the module where `whole` is None."""
    # A tied weight is listed under each of its names.
    named = trainer.model.named_parameters(remove_duplicate=False)
    own = {name: weight for name, weight in named if weight.requires_grad}
    if whole is None:
        return {name: weight.data for name, weight in own.items()}
    gathered = {name: weight for name, weight in whole.items() if name in own}
    if whole and {id(own[name]) for name in gathered} != {id(weight) for weight in own.values()}:
        lost = min(own.keys() - gathered.keys())
        raise StageError(
            f"train: the gathered weights lack {lost}: what is kept would not be what was trained."
        )
    return gathered


def unset_zero3_config(trainer: Any) -> None:
    """Let `from_pretrained` load whole weights again.

    Under ZeRO-3 it waits for the other processes, and these have ended when we merge.
    """
    if _uses_zero3(trainer):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _uses_zero3(trainer: Any) -> bool:
    return bool(
        trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    )
