"""Which adapters vLLM runs beside their base as they are. Whatever is not listed here is merged into the base first.

On a CPU every adapter is: there vLLM copies the adapter's matrices once for each token of a batch (its GPU kernels do
not), so that prompts of 2,000 tokens move tens of gigabytes before the first token of an answer.
"""

import json
from pathlib import Path
from typing import Any

RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512  # what an engine can be built for
# What PEFT may write into adapter_config.json that changes what the adapter computes, as it stands in plain LoRA.
PLAIN: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "fan_in_fan_out": False,
}
BESIDE_LAYERS = {"embed_tokens", "lm_head"}  # targets that are no linear layer of a block


def serves(adapter: Path, on_cpu: bool) -> bool:
    """Whether it is plain LoRA, of a rank that vLLM has, on a device where it is fast."""
    if on_cpu:
        return False
    config = _described(adapter)
    targets = config["target_modules"]
    named = {targets} if isinstance(targets, str) else set(targets)
    changes_base = config.get("init_lora_weights", True) not in (True, False, "gaussian")
    return (
        config["peft_type"] == "LORA"
        and all(config.get(name) in (plain, None) for name, plain in PLAIN.items())
        and not changes_base
        and not any(target.endswith(tuple(BESIDE_LAYERS)) for target in named)
        and _rank(config) <= RANKS[-1]
    )


def engine_rank(adapter: Path) -> int:
    """The smallest rank that an engine can be built for and that holds the adapter."""
    return next(size for size in RANKS if size >= _rank(_described(adapter)))


def _rank(config: dict[str, Any]) -> int:
    """Of the adapter's largest matrix."""
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)


def _described(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return found
