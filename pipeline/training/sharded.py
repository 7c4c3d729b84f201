"""Weights that no process has as a whole (ZeRO-3, FSDP): gathered once, when the training is over, to be published."""

from typing import Any


def gathered(trainer: Any) -> "dict[str, Any] | None":
    """Every weight by name, on the first process; None where the module has them itself. A call of all processes."""
    accelerator = trainer.accelerator
    if trainer.is_deepspeed_enabled and accelerator.state.deepspeed_plugin.zero_stage == 3:
        state = accelerator.get_state_dict(trainer.deepspeed)
        _load_whole_again()
    elif trainer.is_fsdp_enabled:
        state = accelerator.get_state_dict(trainer.model)
    else:
        return None
    return state or {}


def _load_whole_again() -> None:
    """While ZeRO-3 is on, `from_pretrained` waits for the other processes, and those have ended when we merge."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
