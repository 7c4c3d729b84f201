"""A model's shape, known before anything is loaded, and the disk and time that training it takes.

Knows decoders with gated layers (Llama, Qwen, Mistral, Gemma and their relatives); for any other
architecture the answer is None.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import FullAdapter, LoraAdapter, OnlineTraining, TrainConfig
from pipeline.hashing import find_local_folder

GIB, MIB = 1 << 30, 1 << 20
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Optimizer state in bytes a parameter, by a part of the optimizer's name. AdamW's two moments in
# float32 take 8; Lion keeps one, 8-bit optimizers two of one byte, SGD none, Adafactor only row and
# column sums.
OPTIMIZERS = {"adafactor": 0, "sgd": 0, "lion": 4, "8bit": 2}
ADAMW = 8

FOUR_NORMS, NORMED_HEADS = ("gemma2", "gemma3"), ("qwen3", "gemma3")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
)


@dataclass(frozen=True)
class Shape:
    parameters: int  # tied ones counted once
    hidden: int
    inner: int  # of the gated layers
    layers: int
    queries: int  # width of all query heads together
    keys: int
    vocabulary: int
    tied: bool  # the output layer is the embeddings
    norms: int  # norms of the block's width, in each block
    normed_heads: bool  # queries and keys have norms too

    def linear_layers(self) -> dict[str, tuple[int, int]]:
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
    def linear_parameters(self) -> int:
        """Parameters of all linear layers: what a quantised base holds in few bits."""
        sizes = [inputs * outputs for inputs, outputs in self.linear_layers().values()]
        return self.layers * sum(sizes)

    @property
    def largest_linear(self) -> int:
        """Parameters of a block's largest linear layer."""
        return max(inputs * outputs for inputs, outputs in self.linear_layers().values())


def parse_shape(config: Mapping[str, Any]) -> Shape | None:
    """From a model's config.json; None for another architecture."""
    config = config.get("text_config", config)
    if any(not isinstance(config.get(name), int) for name in SIZES):
        return None
    if any("expert" in name for name in config):
        return None
    hidden, inner, layers, heads, vocabulary = (config[name] for name in SIZES)
    head_size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * head_size
    kind = str(config.get("model_type", ""))
    # Where config.json is silent, transformers ties the embeddings of the Gemma family only.
    tied = bool(config.get("tie_word_embeddings", kind.startswith("gemma")))
    norms = 4 if kind.startswith(FOUR_NORMS) else 2
    normed_heads = kind.startswith(NORMED_HEADS)
    uncounted = Shape(
        0, hidden, inner, layers, heads * head_size, keys, vocabulary, tied, norms, normed_heads
    )
    embeddings = vocabulary * hidden * (1 if tied else 2)
    norm_weights = hidden * (norms * layers + 1)  # the last one follows the last block
    return replace(uncounted, parameters=uncounted.linear_parameters + embeddings + norm_weights)


COUNTS = {*SIZES, "head_dim", "num_key_value_heads", "max_position_embeddings", "sliding_window"}


def read_model_config(folder: Path) -> dict[str, Any]:
    """A model's config.json for estimates, without the values that are not of their type.

    Nothing is refused here: whatever opens the model names the fault.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return drop_impossible(config)


def drop_impossible(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        return {}
    known = {
        name: value
        for name, value in config.items()
        if name not in COUNTS or (type(value) is int and value > 0)
    }
    if not isinstance(known.get("layer_types", []), list):
        del known["layer_types"]
    text = drop_impossible(known.pop("text_config", None))
    return {**known, "text_config": text} if text else known


def read_shape(folder: Path) -> Shape | None:
    return parse_shape(read_model_config(folder))


def read_tensor_files(index: Path) -> dict[str, str]:
    """The file of each tensor, by the index of a sharded checkpoint; empty if it is damaged."""
    try:
        files = json.loads(index.read_bytes())["weight_map"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return {}
    is_map = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    return files if is_map else {}


def parameter_cost(weights: Path | str, revision: str | None) -> dict[str, int]:
    """Noted with a step's cost, so that a plan can use times measured on models of this size."""
    folder = find_local_folder(weights, revision)
    shape = read_shape(folder) if folder else None
    return {"parameters": shape.parameters} if shape else {}


def read_layer_names(folder: Path) -> set[str]:
    """Names of the modules that have a weight; empty where this is not known."""
    index, weights = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if read_shape(folder) is None:
        return set()
    if index.is_file():
        names = [*read_tensor_files(index)]
    elif weights.is_file():
        with weights.open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    else:
        return set()
    return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}


def count_trained(shape: Shape, cfg: TrainConfig) -> int:
    """Parameters that are trained: all, or an adapter's."""
    if isinstance(cfg.adapter, FullAdapter):
        return shape.parameters
    linear = shape.linear_layers()
    # LoRA's A is rank × inputs and its B outputs × rank.
    widths = sum(sum(linear[name]) for name in list_adapted(shape, cfg.adapter))
    return shape.layers * cfg.adapter.rank * widths


def list_adapted(shape: Shape, adapter: LoraAdapter) -> list[str]:
    """The linear layers of a block that have an adapter."""
    linear = shape.linear_layers()
    targets = adapter.targets if isinstance(adapter.targets, list) else list(linear)
    names = (target.rpartition(".")[2] for target in targets)
    return [name for name in names if name in linear]


def optimizer_bytes(cfg: TrainConfig) -> int:
    """Optimizer state for each trained parameter."""
    name = str(cfg.args.get("optim", "adamw"))
    return next((size for part, size in OPTIMIZERS.items() if part in name), ADAMW)


@dataclass(frozen=True)
class DiskNeeds:
    checkpoint: float
    published: float
    best_weights: float  # weights that an early stop may return to

    @property
    def models(self) -> float:
        """At most two best weights are kept, and a third exists while it is written."""
        return self.published + 3 * self.best_weights

    @property
    def peak(self) -> float:
        """While a checkpoint is written, the one before it is still there."""
        return 2 * self.checkpoint + self.models


def estimate_disk(shape: Shape, cfg: TrainConfig) -> DiskNeeds:
    trained, size = count_trained(shape, cfg), DTYPE_BYTES[cfg.dtype]
    full_weights = size * shape.parameters
    published = full_weights
    if isinstance(cfg.adapter, LoraAdapter):
        published = 4 * trained + (full_weights if cfg.adapter.save_merged else 0)
    best_weights = 4.0 * trained if cfg.guards.may_stop_early else 0.0
    # A checkpoint holds the trained weights in float32 and the optimizer's state.
    checkpoint = (4.0 + optimizer_bytes(cfg)) * trained
    return DiskNeeds(checkpoint, float(published), best_weights)


def count_operations(shape: Shape, cfg: TrainConfig, tokens: int) -> float:
    """Floating-point operations of a training that reads this many tokens.

    Two for each parameter and token in each pass: forward, the gradient of the activations, the
    gradient of the weights (not for a frozen base), the second forward pass of checkpointing, and
    the forward pass of a reference that runs live.
    """
    passes = 3 if isinstance(cfg.adapter, FullAdapter) else 2
    passes += cfg.gradient_checkpointing + (cfg.reference_logps == "online")
    return 2.0 * passes * shape.parameters * tokens


def count_steps(cfg: TrainConfig, rows: int) -> int:
    """As transformers' Trainer counts: an epoch's last step may have fewer rows."""
    passes = cfg.passes if isinstance(cfg, OnlineTraining) else 1
    return math.ceil(cfg.epochs * math.ceil(rows / cfg.batch) * passes)


def format_bytes(size: float) -> str:
    # From 1000 MiB on `.3g` would write a power of ten.
    return f"{size / GIB:.3g} GiB" if size >= 1000 * MIB else f"{size / MIB:.3g} MiB"
