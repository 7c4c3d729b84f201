"""What an engine takes of a GPU at least: a model's weights, and the keys and values of one longest sequence.

Told from the headers of the weights and from config.json; no weight is read and nothing is started.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.resources.model_shape import Shape, amount, shape_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOATS = {
    "F64",
    "F32",
    "F16",
    "BF16",
}  # loaded in the dtype that was asked for; what is quantised stays as it is
BITS = {
    "F8": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "I16": 16,
    "U16": 16,
    "I32": 32,
    "U32": 32,
    "I64": 64,
    "U64": 64,
}
INDEX = "model.safetensors.index.json"


def without_vllm(knob: str, error: ImportError) -> UserError:
    """`knob` is the block of the config that draws with vLLM."""
    return UserError(
        f"{knob}: vLLM cannot be imported here ({error}).\n"
        "  Run `make install`, or draw with transformers: backend@sample.backend=transformers "
        "backend@exam.sample.backend=transformers"
    )


@dataclass(frozen=True)
class Needs:
    weights: int
    cache: int  # keys and values of one sequence of the longest kind

    @property
    def total(self) -> int:
        return self.weights + self.cache

    def __str__(self) -> str:
        parts = f"weights {amount(self.weights)}, one longest sequence {amount(self.cache)}"
        return f"{amount(self.total)} at least ({parts})"


@dataclass(frozen=True)
class Place:
    """Where an engine is to run: `knob` is its block of the config, `share` what it may fill of each of its GPUs."""

    knob: str
    device: int
    share: float
    gpus: int
    vllm: bool = True
    free: int | None = None  # what no other process holds of each; None: all of it

    @property
    def asked(self) -> int:
        """Bytes that the engine takes of each GPU."""
        return int(self.device * self.share)

    @property
    def occupied(self) -> bool:
        """Whether other processes hold a part of what it would take."""
        return self.free is not None and self.free < self.asked

    @property
    def room(self) -> int:
        """Bytes on each GPU."""
        return self.asked if self.free is None else min(self.asked, self.free)

    def __str__(self) -> str:
        of_each = f" on each of {self.gpus} GPUs" if self.gpus > 1 else ""
        of = f"memory={self.share:g} of {amount(self.device)}" if self.vllm else ""
        if self.occupied:
            of = f"what is free of {of or amount(self.device)}"
        return f"{amount(self.room)}{of_each}{f' ({of})' if of else ''}"


def shortage(needs: Needs, place: Place) -> str | None:
    """What to say when it does not fit: what it needs, what there is, what to lower."""
    if needs.total <= place.room * place.gpus:
        return _occupied(needs, place)
    enough = -(-needs.total // max(place.room, 1))
    runtime = f"{place.knob}.runtime"
    raised = "end what else uses the GPU" if place.occupied else f"raise {runtime}.memory"
    more = f"{raised}, or give {runtime}.tensor_parallel={enough} or more"
    return (
        f"{place.knob}: the policy needs {needs}, and there are {place}.\n"
        f"  Lower limits.prompt or limits.completion, give dtype=bfloat16 where it is float32,"
        f" {more if place.vllm else 'or draw with vLLM on several GPUs'}."
    )


def _occupied(needs: Needs, place: Place) -> str | None:
    """vLLM starts only where all that `memory` asks for is free, however little the model needs of it."""
    if not (place.vllm and place.occupied):
        return None
    assert place.free is not None
    lower = int(100 * place.free / place.device) / 100
    fits = needs.total <= lower * place.device * place.gpus
    other = f", or give {place.knob}.runtime.memory={lower:g}" if fits else ""
    return (
        f"{place.knob}: vLLM takes memory={place.share:g} of {amount(place.device)} as it starts, and "
        f"{amount(place.free)} are free.\n"
        f"  Wait until other processes have left the GPU{other}."
    )


def needs_in(folder: Path, dtype: str, longest: int) -> Needs | None:
    """Of a checkpoint; None where the folder has neither whole weights nor a shape that is known."""
    if not (file := folder / "config.json").is_file():
        return None
    config = json.loads(file.read_text())
    weights = sum(_bytes(tensor, dtype) for file in _weights(folder) for tensor in _header(file))
    if not weights and (shape := shape_of(config)):  # a hub model that is still to be fetched
        weights = shape.parameters * BYTES[dtype]
    return Needs(weights, cache(config, dtype, longest)) if weights else None


def needs_of(shape: Shape, dtype: str, longest: int) -> Needs:
    """Of a model that is to be made."""
    return Needs(
        shape.parameters * BYTES[dtype], 2 * shape.layers * shape.keys * BYTES[dtype] * longest
    )


def cache(config: Mapping[str, Any], dtype: str, longest: int) -> int:
    """Bytes of keys and values that one sequence takes in layers that see all of it; 0 where the config is silent."""
    config = config.get("text_config", config)
    queries, width = config.get("num_attention_heads"), config.get("hidden_size")
    heads = config.get("num_key_value_heads") or queries
    size = config.get("head_dim") or (queries and width and width // queries)
    kinds = config.get("layer_types") or ["full_attention"] * (config.get("num_hidden_layers") or 0)
    if not heads or not size or config.get("kv_lora_rank"):  # what is compressed takes far less
        return 0
    if config.get("sliding_window") and not config.get("layer_types"):
        longest = min(longest, config["sliding_window"])
    tokens = min(longest, config.get("max_position_embeddings") or longest)
    return 2 * kinds.count("full_attention") * heads * size * BYTES[dtype] * tokens


def _weights(folder: Path) -> list[Path]:
    """Some repositories hold their weights twice, the second time under other names."""
    index = folder / INDEX
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        return [folder / name for name in sorted(named) if (folder / name).is_file()]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


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
