"""A base held in a few bits while an adapter is trained beside it: how it is read, and that it computes in one way."""

from typing import Any

from pipeline.artifacts import Model
from pipeline.config import Quantization


def quantization_of(model: Model) -> Quantization | None:
    """How the base was kept in memory while its adapter was trained."""
    found = model.record.get("quantization")
    return Quantization(bits=found["bits"], double=found["double"]) if found else None


def loading(quantization: Quantization | None, dtype: str, device: Any) -> dict[str, Any]:
    """What `from_pretrained` is told so that the base is quantised as it is read."""
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


def in_one_arithmetic(module: Any) -> Any:
    """On some CPUs bitsandbytes packs 4-bit layers anew for bfloat16 when gradients are off: other numbers than in
    training, and none at all for widths that are no multiple of 32."""
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return module
