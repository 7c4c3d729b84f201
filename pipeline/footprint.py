"""What a training takes of a device's memory and of the disk, told from the model's shape before anything is loaded.

It knows decoders with gated layers (Llama, Qwen, Mistral, Gemma and their kin); of another shape it says nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import FullAdapter, LoraAdapter, TrainConfig
from pipeline.config.launching import SHARDED, SHARED

GIB, MIB = 1 << 30, 1 << 20
SIZE = {"float32": 4, "bfloat16": 2}
OPTIMIZERS = {"adafactor": 0, "sgd": 0, "lion": 4, "8bit": 2}  # bytes a parameter, by a part of the name; AdamW's is 8
TILE = 4096 * 32768  # logits that TRL's fused head has in memory at once


@dataclass(frozen=True)
class Shape:
    parameters: int  # tied ones once
    hidden: int
    inner: int  # of the gated layers
    layers: int
    queries: int  # numbers that the query heads have together
    keys: int
    vocabulary: int

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


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """From a model's config.json; None where it is another kind of model."""
    config = config.get("text_config", config)
    names = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"
    if any(not isinstance(config.get(name), int) for name in names) or any("expert" in name for name in config):
        return None
    hidden, inner, layers, heads, vocabulary = (config[name] for name in names)
    size = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * size
    bare = Shape(0, hidden, inner, layers, heads * size, keys, vocabulary)
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = hidden * (2 * layers + 1)
    return Shape(bare.packed + embeddings + norms, hidden, inner, layers, heads * size, keys, vocabulary)


def shape_in(folder: Path) -> Shape | None:
    file = folder / "config.json"
    return shape_of(json.loads(file.read_text())) if file.is_file() else None


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def state(self) -> float:
        """What is there whatever is read."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.state + self.activations + self.logits

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "logits")}
        return f"{amount(self.total)} (" + ", ".join(f"{name} {amount(size)}" for name, size in parts.items()) + ")"


def memory(shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int) -> Memory:
    """With `rows` pairs of at most `longest` tokens a side in memory at once, on each of `world` devices.

    Demonstrations that are rehearsed with them are taken to be as long, and all of their logits are there.
    """
    trained = trained_in(shape, cfg)
    weights, gradients = _weights(shape, cfg), 4.0 * trained
    optimizer = float(_optimizer(cfg) * trained)
    launch = cfg.runtime.launch
    if launch in SHARED:
        optimizer /= world
    if launch in SHARED and launch != "zero1":
        gradients /= world
    if launch in SHARDED:
        weights = weights / world + 4.0 * shape.packed / shape.layers  # one block at a time is whole
    tokens, looked = rows * longest * (1 if cfg.trainer == "kto" else 2), rows * cfg.max_length
    beside = longest * (-(-cfg.rehearsed // (cfg.batch // rows)) if rows else 0)
    logits = _logits(shape, cfg, tokens, looked) + 3 * 4 * beside * shape.vocabulary
    return Memory(weights, gradients, optimizer, _activations(shape, cfg, tokens + beside), logits)


def trained_in(shape: Shape, cfg: TrainConfig) -> int:
    """Parameters that are trained: all, or an adapter's."""
    if isinstance(cfg.adapter, FullAdapter):
        return shape.parameters
    linear = shape.linear()
    named = cfg.adapter.targets if isinstance(cfg.adapter.targets, list) else list(linear)
    beside = [sum(linear[name]) for name in (target.rpartition(".")[2] for target in named) if name in linear]
    return shape.layers * cfg.adapter.rank * sum(beside)


def _weights(shape: Shape, cfg: TrainConfig) -> float:
    size, trained = SIZE[cfg.dtype], trained_in(shape, cfg)
    if isinstance(cfg.adapter, FullAdapter):
        rounded = size * shape.packed if cfg.dtype == "bfloat16" else 0  # mixed precision keeps both
        return 4.0 * shape.parameters * (2 if cfg.logps == "live" else 1) + rounded
    return _base(shape, cfg.adapter, size) + 4.0 * trained


def _base(shape: Shape, adapter: LoraAdapter, size: int) -> float:
    if (quantization := adapter.quantization) is None:
        return float(size * shape.parameters)
    scales = {8: 0.0, 4: 1 / 64 * (1 + 4 / 256) if quantization.double else 4 / 64}[quantization.bits]
    return (quantization.bits / 8 + scales) * shape.packed + size * (shape.parameters - shape.packed)


def _optimizer(cfg: TrainConfig) -> int:
    name = str(cfg.args.get("optim", "adamw"))
    return next((size for part, size in OPTIMIZERS.items() if part in name), 8)


def _activations(shape: Shape, cfg: TrainConfig, tokens: int) -> float:
    """What a backward pass reads again. With checkpointing that is each block's input, and one block in full."""
    size, full = SIZE[cfg.dtype], isinstance(cfg.adapter, FullAdapter)
    stream = 4 if full else size  # full weights are float32, and so is what flows between the blocks
    norms = 2 * (4 + stream if full else 4) * shape.hidden  # frozen scales need no normalised copy
    attention = size * (2 * shape.queries + 2 * shape.keys)
    gates = size * 3 * shape.inner
    # By the linear layers: five of them read the block's width, and mixed precision rounds a copy for each.
    read = size * ((5 if cfg.dtype == "bfloat16" else 2) * shape.hidden + shape.inner)
    if not full and cfg.dtype == "bfloat16":
        read += size * shape.queries
    block = norms + attention + gates + read
    kept = shape.layers * stream * shape.hidden + block if cfg.gradient_checkpointing else shape.layers * block
    return float(tokens * kept)


def _logits(shape: Shape, cfg: TrainConfig, tokens: int, looked: int) -> float:
    """TRL's DPO and KTO compute them in tiles, its CPO and ORPO at once; so do the looks at dev pairs."""
    full = isinstance(cfg.adapter, FullAdapter)
    head = 4 * shape.vocabulary * shape.hidden if full else 0  # the head's gradient, before it is added
    if cfg.trainer in ("cpo", "orpo"):
        return float(3 * 4 * tokens * shape.vocabulary)
    tile = 3 * 4 * min(TILE, tokens * shape.vocabulary)
    look = looked * shape.vocabulary * SIZE[cfg.dtype]
    return float(max(tile + head + 4 * tokens * shape.hidden, look))


def most_rows(shape: Shape, cfg: TrainConfig, each: int, longest: int, world: int, room: float) -> int:
    """The largest divisor of a process' share of the batch that fits; 1 where even that does not."""
    fits = [n for n in range(1, each + 1) if each % n == 0 and memory(shape, cfg, n, longest, world).total <= room]
    return max(fits, default=1)


@dataclass(frozen=True)
class Disk:
    checkpoint: float
    published: float
    kept: float  # weights that an early stop may go back to

    @property
    def most(self) -> float:
        """While a checkpoint is written, the one before it is still there."""
        return 2 * self.checkpoint + self.published + 2 * self.kept


def disk(shape: Shape, cfg: TrainConfig) -> Disk:
    trained, size = trained_in(shape, cfg), SIZE[cfg.dtype]
    whole = size * shape.parameters
    published = whole
    if isinstance(cfg.adapter, LoraAdapter):
        published = 4 * trained + (whole if cfg.adapter.save_merged else 0)
    kept = 4.0 * trained if cfg.guards.may_stop else 0.0
    return Disk((4.0 + _optimizer(cfg)) * trained, float(published), kept)


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
