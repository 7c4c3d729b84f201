"""What computes a training's attention and layers, and what each way needs of a machine."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import AfterValidator

HUB = "kernels-community/"
FLASH = ("flash_attention_2", "flash_attention_3")
ATTENTIONS = ("auto", "sdpa", *FLASH, "flex")
# Modules that any one of is enough for, and what installs the first. transformers takes flash
# attention from the hub, by the package kernels, where flash-attn is missing.
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "flash_attention_2": (("flash_attn", "kernels"), "flash-attn --no-build-isolation"),
    "flash_attention_3": (("flash_attn_interface", "kernels"), "kernels"),
    HUB: (("kernels",), "kernels"),
}
# Of `train.args`: Liger's kernels are Triton's, and activations are moved off a GPU's memory.
GPU_ARGS = ("use_liger_kernel", "activation_offloading")


def check_attention(name: str) -> str:
    if name not in ATTENTIONS and not (name.startswith(HUB) and name != HUB):
        raise ValueError(f"expected {', '.join(ATTENTIONS)}, or {HUB}NAME from the hub")
    return name


Attention = Annotated[str, AfterValidator(check_attention)]


def is_flash(attention: str) -> bool:
    """Whether it is flash attention, by transformers' name or ours."""
    return attention in FLASH or "flash" in attention.removeprefix(HUB)


def explain_attention(attention: str, dtype: str, gpus: int, knob: str = "train") -> str | None:
    """What this machine lacks for it; None: nothing. `knob` is that of the training."""
    asked = f"{knob}.attention={attention}"
    modules, install = PACKAGES.get(HUB if attention.startswith(HUB) else attention, ((), ""))
    is_missing = bool(modules) and not any(map(find_spec, modules))
    lacks = [f"the package {install.split()[0]}, which is not installed"] if is_missing else []
    if not gpus and (attention == "flex" or is_flash(attention)):
        lacks.append("a GPU, and this machine has none")
    if lacks:
        found = f" (pip install {install})" if is_missing else ""
        return (
            f"{asked} needs {', and '.join(lacks)}.\n"
            f"  Give {knob}.attention=auto, or run where there is what it needs{found}."
        )
    if is_flash(attention) and dtype == "float32":
        return (
            f"{asked} computes in half precision, and {knob}.dtype=float32.\n"
            f"  Give {knob}.dtype=bfloat16, or {knob}.attention=auto."
        )
    return None


def explain_args(args: Mapping[str, Any], gpus: int, knob: str = "train") -> str | None:
    """What this machine lacks for kernels and offloading in `args`; None: nothing."""
    if args.get("use_liger_kernel") and not find_spec("liger_kernel"):
        return (
            f"{knob}.args.use_liger_kernel=true needs the package liger-kernel, which is not"
            " installed.\n"
            "  Install it into this environment (pip install liger-kernel), or leave it out."
        )
    if (used := [name for name in GPU_ARGS if args.get(name)]) and not gpus:
        return (
            f"{knob}.args.{used[0]}=true needs a GPU, and this machine has none.\n"
            "  Leave it out, or run where there is one."
        )
    return None
