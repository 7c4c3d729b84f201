"""Whether a model fits a GPU: what its weights and one longest sequence take, told before an engine is started."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {"F64", "F32", "F16", "BF16"}  # loaded in the dtype that was asked for; what is quantised stays as it is
BITS = {"F8": 8, "I8": 8, "U8": 8, "BOOL": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}


@dataclass(frozen=True)
class Needs:
    weights: int
    cache: int  # keys and values of one sequence of the longest kind

    @property
    def total(self) -> int:
        return self.weights + self.cache


def shortage(needs: Needs, device: int, share: float, gpus: int) -> str | None:
    """What to say when it does not fit: what it needs, what there is, what to lower."""
    there = int(device * share)
    if needs.total <= there * gpus:
        return None
    of_each = f" on each of {gpus} GPUs" if gpus > 1 else ""
    enough = -(-needs.total // there)
    return (
        f"sample.backend: the policy needs {_gib(needs.total)} GiB at least ({_gib(needs.weights)} of weights,"
        f" {_gib(needs.cache)} for one longest sequence), and there are {_gib(there)}{of_each}"
        f" (memory={share:g} of {_gib(device)}).\n"
        f"  Lower limits.prompt or limits.completion, give dtype=bfloat16 where it is float32, raise"
        f" sample.backend.runtime.memory, or give sample.backend.runtime.tensor_parallel={enough} or more."
    )


def needs_of(folder: Path, config: Any, dtype: str, longest: int) -> Needs:
    """By the headers of the safetensors files and the shape in config.json; nothing is read."""
    headers = [_header(file) for file in sorted(folder.glob("*.safetensors"))]
    return Needs(sum(_bytes(tensor, dtype) for header in headers for tensor in header), cache(config, dtype) * longest)


def cache(config: Any, dtype: str) -> int:
    """Bytes of keys and values that one token takes; 0 where the config does not say."""
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    if not heads or not layers:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * layers * heads * size * BYTES[dtype]


def _header(file: Path) -> list[dict[str, Any]]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    return [tensor for name, tensor in header.items() if name != "__metadata__"]


def _bytes(tensor: dict[str, Any], dtype: str) -> int:
    numbers, kind = prod(tensor["shape"]), tensor["dtype"]
    if kind in FLOATS:
        return numbers * BYTES[dtype]
    return numbers * BITS.get(kind.split("_")[0], 8) // 8


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}"
