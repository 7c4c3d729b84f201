"""A base quantised to a few bits while an adapter on it is trained."""

from typing import Any

from pipeline.artifacts import Model
from pipeline.config import Quantization


def read_quantization(model: Model) -> Quantization | None:
    """How the base was quantised while its adapter was trained."""
    record = model.record.get("quantization")
    return Quantization(bits=record["bits"], double=record["double"]) if record else None


def build_load_arguments(
    quantization: Quantization | None, dtype: str, device: Any
) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantise the base as it is read."""
    if quantization is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    if quantization.bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantization.double,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def disable_bfloat16_packing(module: Any) -> Any:
    """Switch off bitsandbytes' bfloat16 path for 4-bit layers.

    On some CPUs it repacks them when gradients are off. The results then differ from those in
    training, and a width that is not a multiple of 32 fails.
    """
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return module
