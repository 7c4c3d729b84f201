"""The least GPU memory that an engine needs: a model's weights and the KV cache of one sequence.

Computed from the headers of the weights and from config.json. Reads no weight and starts nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.resources.model_shape import (
    DTYPE_BYTES,
    Shape,
    format_bytes,
    parse_shape,
    read_model_config,
    read_tensor_files,
)

# Names as in a safetensors header. Floats are loaded in the dtype that the config asks for;
# quantised tensors keep theirs.
FLOATS = {"F64", "F32", "F16", "BF16"}
BITS = {"F8": 8, "I8": 8, "U8": 8, "BOOL": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32}
BITS |= {"I64": 64, "U64": 64}
INDEX = "model.safetensors.index.json"


def missing_vllm(knob: str, error: ImportError) -> UserError:
    """`knob` is the block of the config that samples with vLLM."""
    return UserError(
        f"{knob}: vLLM cannot be imported here ({error}).\n"
        "  Run `make install`, or sample with transformers: backend=transformers"
    )


@dataclass(frozen=True)
class EngineNeeds:
    weights: int
    cache: int  # keys and values of one sequence of the greatest length

    @property
    def total(self) -> int:
        return self.weights + self.cache

    def __str__(self) -> str:
        weights, cache = format_bytes(self.weights), format_bytes(self.cache)
        parts = f"weights {weights}, one longest sequence {cache}"
        return f"{format_bytes(self.total)} at least ({parts})"


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine is to run."""

    knob: str  # its block of the config
    device: int  # bytes of each GPU
    share: float  # of each GPU, that the engine may fill
    gpus: int
    vllm: bool = True
    free: int | None = None  # bytes of each GPU that no other process holds; None: all

    @property
    def requested_bytes(self) -> int:
        """Bytes that the engine takes of each GPU."""
        return int(self.device * self.share)

    @property
    def is_occupied(self) -> bool:
        """Whether other processes hold a part of what the engine would take."""
        return self.free is not None and self.free < self.requested_bytes

    @property
    def available(self) -> int:
        """Bytes on each GPU."""
        return self.requested_bytes if self.free is None else min(self.requested_bytes, self.free)

    def __str__(self) -> str:
        device = format_bytes(self.device)
        source = f"a share of {self.share:g} of {device}" if self.vllm else ""
        if self.is_occupied:
            source = f"what is free of {source or device}"
        on_each = f" on each of {self.gpus} GPUs" if self.gpus > 1 else ""
        return f"{format_bytes(self.available)}{on_each}{f' ({source})' if source else ''}"


def shortage(needs: EngineNeeds, place: EnginePlace) -> str | None:
    """The error where the model does not fit: what it needs, what there is, what to lower."""
    if needs.total <= place.available * place.gpus:
        return _occupancy(needs, place)
    gpus = -(-needs.total // max(place.available, 1))
    runtime = f"{place.knob}.runtime"
    if place.is_occupied:
        first_remedy = "end what else uses the GPU"
    else:
        first_remedy = f"raise {runtime}.memory"
    remedies = f"{first_remedy}, or give {runtime}.tensor_parallel={gpus} or more"
    return (
        f"{place.knob}: the policy needs {needs}, and there are {place}.\n"
        f"  Lower limits.prompt or limits.completion, give dtype=bfloat16 where it is float32,"
        f" {remedies if place.vllm else 'or draw with vLLM on several GPUs'}."
    )


def _occupancy(needs: EngineNeeds, place: EnginePlace) -> str | None:
    """vLLM starts only if all of its `memory` share is free, however little the model needs."""
    if not (place.vllm and place.is_occupied):
        return None
    assert place.free is not None
    lower = int(100 * place.free / place.device) / 100
    fits = needs.total <= lower * place.device * place.gpus
    remedy = f", or give {place.knob}.runtime.memory={lower:g}" if fits else ""
    return (
        f"{place.knob}: vLLM takes a share of {place.share:g} of {format_bytes(place.device)}"
        f" as it starts, and {format_bytes(place.free)} are free.\n"
        f"  Wait until other processes have left the GPU{remedy}."
    )


def read_needs(folder: Path, dtype: str, longest: int) -> EngineNeeds | None:
    """Of a checkpoint; None where the folder has neither weights nor a known architecture."""
    if not (folder / "config.json").is_file():
        return None
    config = read_model_config(folder)
    tensors = [tensor for file in _weight_files(folder) for tensor in _read_header(file)]
    weights = sum(_loaded_bytes(tensor, dtype) for tensor in tensors)
    if not weights and (shape := parse_shape(config)):  # a hub model that is still to be fetched
        weights = shape.parameters * DTYPE_BYTES[dtype]
    return EngineNeeds(weights, kv_cache_bytes(config, dtype, longest)) if weights else None


def estimate_needs(shape: Shape, dtype: str, longest: int) -> EngineNeeds:
    """Of a model that this run is to make."""
    size = DTYPE_BYTES[dtype]
    cache = 2 * shape.layers * shape.keys * size * longest  # keys and values
    return EngineNeeds(shape.parameters * size, cache)


def kv_cache_bytes(config: Mapping[str, Any], dtype: str, longest: int) -> int:
    """Keys and values of one sequence, in the layers that attend to all of it.

    0 where config.json does not tell.
    """
    config = config.get("text_config", config)
    queries, width = config.get("num_attention_heads"), config.get("hidden_size")
    heads = config.get("num_key_value_heads") or queries
    size = config.get("head_dim") or (queries and width and width // queries)
    kinds = config.get("layer_types") or ["full_attention"] * (config.get("num_hidden_layers") or 0)
    # A compressed cache (multi-head latent attention) takes far less than this would count.
    if not heads or not size or config.get("kv_lora_rank"):
        return 0
    if config.get("sliding_window") and not config.get("layer_types"):
        longest = min(longest, config["sliding_window"])
    tokens = min(longest, config.get("max_position_embeddings") or longest)
    return 2 * kinds.count("full_attention") * heads * size * DTYPE_BYTES[dtype] * tokens


def _weight_files(folder: Path) -> list[Path]:
    """Some repositories hold their weights twice, the second time under other names."""
    index = folder / INDEX
    if index.is_file():
        names = set(read_tensor_files(index).values())
        return [folder / name for name in sorted(names) if (folder / name).is_file()]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _read_header(file: Path) -> list[dict[str, Any]]:
    with file.open("rb") as weights:
        length = int.from_bytes(weights.read(8), "little")
        header = json.loads(weights.read(length))
    return [tensor for name, tensor in header.items() if name != "__metadata__"]


def _loaded_bytes(tensor: dict[str, Any], dtype: str) -> int:
    numbers, kind = prod(tensor["shape"]), tensor["dtype"]
    if kind in FLOATS:
        return numbers * DTYPE_BYTES[dtype]
    return numbers * BITS.get(kind.split("_")[0], 8) // 8
