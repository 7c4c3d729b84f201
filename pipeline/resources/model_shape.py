"""A model's shape, told before anything is loaded, and what a training of it takes of disk and of time.

It knows decoders with gated layers (Llama, Qwen, Mistral, Gemma and their kin); of another shape it says nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import FullAdapter, LoraAdapter, TrainConfig
from pipeline.hashing import find_local_folder

GIB, MIB = 1 << 30, 1 << 20
SIZE = {"float32": 4, "bfloat16": 2}
OPTIMIZERS = {
    "adafactor": 0,
    "sgd": 0,
    "lion": 4,
    "8bit": 2,
}  # bytes a parameter, by a part of the name; AdamW's is 8

FOUR_NORMS, NORMED_HEADS = ("gemma2", "gemma3"), ("qwen3", "gemma3")


@dataclass(frozen=True)
class Shape:
    parameters: int  # tied ones once
    hidden: int
    inner: int  # of the gated layers
    layers: int
    queries: int  # numbers that the query heads have together
    keys: int
    vocabulary: int
    tied: bool  # the output layer is the embeddings
    norms: int  # of the block's width, in each block
    normed_heads: bool  # queries and keys by norms of their own

    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def packed(self) -> int:
        """Parameters of the linear layers: what a quantised base holds in few bits."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear().values())

    @property
    def largest(self) -> int:
        """Parameters of a block's largest layer."""
        return max(inputs * outputs for inputs, outputs in self.linear().values())


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """From a model's config.json; None where it is another kind of model."""
    config = config.get("text_config", config)
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    if any(not isinstance(config.get(name), int) for name in names) or any(
        "expert" in name for name in config
    ):
        return None
    hidden, inner, layers, heads, vocabulary = (config[name] for name in names)
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    kind = str(config.get("model_type", ""))
    tied = bool(
        config.get("tie_word_embeddings", kind.startswith("gemma"))
    )  # only Gemma's are unless it says no
    norms, normed = 4 if kind.startswith(FOUR_NORMS) else 2, kind.startswith(NORMED_HEADS)
    bare = Shape(0, hidden, inner, layers, heads * size, keys, vocabulary, tied, norms, normed)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    return replace(bare, parameters=bare.packed + embeddings + hidden * (norms * layers + 1))


def shape_in(folder: Path) -> Shape | None:
    file = folder / "config.json"
    return shape_of(json.loads(file.read_text())) if file.is_file() else None


def parameters_of(weights: Path | str, revision: str | None) -> dict[str, int]:
    """For the cost of a step that runs a model, so that a plan knows what was measured of its like."""
    folder = find_local_folder(weights, revision)
    shape = shape_in(folder) if folder else None
    return {"parameters": shape.parameters} if shape else {}


def layers_in(folder: Path) -> set[str]:
    """Names of the modules that have a weight; none where a model of this kind, or its files, are not known here."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if shape_in(folder) is None:
        return set()
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
    elif whole.is_file():
        with whole.open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    else:
        return set()
    return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}


def trained_in(shape: Shape, cfg: TrainConfig) -> int:
    """Parameters that are trained: all, or an adapter's."""
    if isinstance(cfg.adapter, FullAdapter):
        return shape.parameters
    linear = shape.linear()
    return (
        shape.layers
        * cfg.adapter.rank
        * sum(sum(linear[name]) for name in adapted_in(shape, cfg.adapter))
    )


def adapted_in(shape: Shape, adapter: LoraAdapter) -> list[str]:
    """The linear layers of a block that have an adapter beside them."""
    linear = shape.linear()
    named = adapter.targets if isinstance(adapter.targets, list) else list(linear)
    return [name for name in (target.rpartition(".")[2] for target in named) if name in linear]


def optimizer_bytes(cfg: TrainConfig) -> int:
    """Of a parameter that is trained."""
    name = str(cfg.args.get("optim", "adamw"))
    return next((size for part, size in OPTIMIZERS.items() if part in name), 8)


@dataclass(frozen=True)
class Disk:
    checkpoint: float
    published: float
    kept: float  # weights that an early stop may go back to

    @property
    def models(self) -> float:
        """Kept ones are two at most, and a third while it is written."""
        return self.published + 3 * self.kept

    @property
    def most(self) -> float:
        """While a checkpoint is written, the one before it is still there."""
        return 2 * self.checkpoint + self.models


def disk(shape: Shape, cfg: TrainConfig) -> Disk:
    trained, size = trained_in(shape, cfg), SIZE[cfg.dtype]
    whole = size * shape.parameters
    published = whole
    if isinstance(cfg.adapter, LoraAdapter):
        published = 4 * trained + (whole if cfg.adapter.save_merged else 0)
    kept = 4.0 * trained if cfg.guards.may_stop_early else 0.0
    return Disk((4.0 + optimizer_bytes(cfg)) * trained, float(published), kept)


def work(shape: Shape, cfg: TrainConfig, tokens: int) -> float:
    """Floating-point operations: two a parameter forward, two for each of the two gradients, two to compute again."""
    passes = 3 if isinstance(cfg.adapter, FullAdapter) else 2
    passes += cfg.gradient_checkpointing + (cfg.logps == "live")
    return 2.0 * passes * shape.parameters * tokens


def steps(cfg: TrainConfig, rows: int) -> int:
    """As transformers counts them: an epoch's last step may be a short one."""
    return math.ceil(cfg.epochs * math.ceil(rows / cfg.batch))


def amount(size: float) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB else f"{size / MIB:.3g} MiB"
