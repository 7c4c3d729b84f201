"""Which adapters vLLM can run unmerged. Any other adapter is merged into its base first.

On a CPU all are merged: there vLLM copies the adapter's matrices once for each token of a batch
(its GPU kernels do not), so that prompts of 2,000 tokens move tens of gigabytes before the first
token of an answer.
"""

import json
from pathlib import Path
from typing import Any

from pipeline import hardware
from pipeline.artifacts import Model

ENGINE_RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512  # max_lora_rank values that vLLM accepts
# Fields of PEFT's adapter_config.json that change what the adapter computes, with their values in
# plain LoRA.
PLAIN_LORA: dict[str, Any] = {
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
NON_LAYER_TARGETS = {"embed_tokens", "lm_head"}  # targets that are not linear layers of a block


def runs_unmerged(policy: Model) -> bool:
    """Whether vLLM here runs this policy as base and adapter.

    One that was trained on a quantised base is merged with the weights that the bits stand for.
    """
    if policy.adapter is None or is_quantized(policy):
        return False
    return supports_adapter(policy.adapter, on_cpu=not hardware.list_gpus())


def is_quantized(policy: Model) -> bool:
    return "quantization" in policy.record


def find_weights(policy: Model, model: Model) -> Path | str:
    """What `model` is opened from, wherever it is: a policy is merged anew for each Step."""
    is_merged = policy.adapter is not None and model.adapter is None
    return policy.adapter if policy.adapter and is_merged else model.weights


def supports_adapter(adapter: Path, on_cpu: bool) -> bool:
    """Whether it is plain LoRA, of a rank that vLLM has, on a device where it is fast."""
    if on_cpu:
        return False
    config = _read_config(adapter)
    targets = config["target_modules"]
    names = {targets} if isinstance(targets, str) else set(targets)
    changes_base = config.get("init_lora_weights", True) not in (True, False, "gaussian")
    return (
        config["peft_type"] == "LORA"
        and all(config.get(name) in (plain, None) for name, plain in PLAIN_LORA.items())
        and not changes_base
        and not any(name.endswith(tuple(NON_LAYER_TARGETS)) for name in names)
        and _find_rank(config) <= ENGINE_RANKS[-1]
    )


def choose_engine_rank(adapter: Path) -> int:
    """The smallest rank that vLLM accepts and that holds the adapter."""
    rank = _find_rank(_read_config(adapter))
    return next(size for size in ENGINE_RANKS if size >= rank)


def _find_rank(config: dict[str, Any]) -> int:
    """The rank of the adapter's largest matrix."""
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)


def _read_config(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return config
