"""What a training step holds of one device's memory at its fullest moment, told before anything is loaded.

The moments are those of TRL's trainers under torch's autograd; tests/test_moments.py holds them to measured bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.config import FullAdapter, LoraAdapter, TrainConfig
from pipeline.config.launching import SHARDED, SHARED
from pipeline.footprint import SIZE, Shape, adapted_in, amount, optimizer_bytes, trained_in

ROWS, COLUMNS = 4096, 32768  # of the tile of logits that TRL's fused head has in memory
AT_ONCE = "cpo", "orpo"  # the trainers without that head


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at one moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "logits")}
        return f"{amount(self.total)} (" + ", ".join(f"{name} {amount(size)}" for name, size in parts.items()) + ")"


def memory(shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int, gpu: bool = True) -> Memory:
    """With `rows` pairs of at most `longest` tokens a side in memory at once, on each of `world` devices.

    Demonstrations that are rehearsed with them are taken to be as long, and rows to be padded, so that attention has
    a mask.
    """
    return max(Training(shape, cfg, rows, longest, world, gpu).moments(), key=lambda moment: moment.total)


def most_rows(
    shape: Shape, cfg: TrainConfig, each: int, longest: int, world: int, room: float, gpu: bool = True
) -> int:
    """The largest divisor of a process' share of the batch that fits; 1 where even that does not."""
    fits = [n for n in range(1, each + 1) if each % n == 0 and memory(shape, cfg, n, longest, world, gpu).total <= room]
    return max(fits, default=1)


@dataclass(frozen=True)
class Training:
    shape: Shape
    cfg: TrainConfig
    rows: int
    longest: int
    world: int
    gpu: bool

    def moments(self) -> Iterator[Memory]:
        """In the order of a step, and then a look at the dev pairs."""
        checkpointing, layers = self.cfg.gradient_checkpointing, self.shape.layers
        read, early, gathered = self.tokens + self.beside, self.gradients_before, self.gradients
        kept = self.longest + layers * (self.stream * self.shape.hidden if checkpointing else self.block)
        # A block that is run again rounds its own.
        rounded = self.rounded / layers if checkpointing and self.full else self.rounded
        waiting = self.head if self.shape.tied else 0.0  # its gradient is added when the embeddings' is there as well

        yield self._at(self.rounded, early, read * (kept + self.after), self._read_forward)
        yield self._at(rounded, early, read * (kept + self.after), self._logits_backward)
        yield self._at(rounded, early + self.head, self.tokens * (kept + self.after + self.into_head), self._head)
        first = kept + self.passing + (self.block if checkpointing else 0)
        last = self.longest + self.block + self.passing
        to_come = 0.0 if self.accumulates else self.head  # the embeddings' gradient
        yield self._at(rounded, early + max(waiting, to_come) + self.largest, read * first)
        yield self._at(
            self.rounded / (layers if self.full else 1), gathered - to_come + waiting + self.largest, read * last
        )
        yield self._at(0, gathered + self.embeddings, 0)
        # The reference of whole weights is read for a look and given back; an adapter's is what it stands on.
        beside = self.size * self.shape.parameters if self.full and self.cfg.guards.prompts else 0
        yield self._at(self.rounded + beside, self.buckets, 0, self._look)

    def _at(self, rounded: float, gradients: float, activations: float, logits: float = 0.0) -> Memory:
        return Memory(self.weights + rounded, gradients, self.optimizer, activations, logits)

    # ── what there is whatever is read ────────────────────────────────────────────────────────────────────────────

    @property
    def full(self) -> bool:
        return isinstance(self.cfg.adapter, FullAdapter)

    @property
    def mixed(self) -> bool:
        return self.cfg.dtype == "bfloat16"

    @cached_property
    def adapted(self) -> list[str]:
        return adapted_in(self.shape, self.cfg.adapter) if isinstance(self.cfg.adapter, LoraAdapter) else []

    @property
    def dora(self) -> bool:
        return isinstance(self.cfg.adapter, LoraAdapter) and self.cfg.adapter.dora

    @property
    def size(self) -> int:
        return SIZE[self.cfg.dtype]

    @cached_property
    def trained(self) -> int:
        return trained_in(self.shape, self.cfg)

    @cached_property
    def weights(self) -> float:
        if isinstance(self.cfg.adapter, LoraAdapter):
            held = _base(self.shape, self.cfg.adapter, self.size) + 4.0 * self.trained
        else:
            held = 4.0 * self.shape.parameters * (2 if self.cfg.logps == "live" else 1)
        if self.cfg.runtime.launch in SHARDED:
            return held / self.world + 4.0 * self.shape.packed / self.shape.layers  # one block at a time is whole
        return held

    @property
    def rounded(self) -> float:
        """Mixed precision keeps its bfloat16 copies until the pass ends; of a quantised base one layer is unpacked,
        and DoRA adds one layer's adapter to it in float32 to know the norms."""
        if isinstance(self.cfg.adapter, LoraAdapter):
            unpacked = self.size if self.cfg.adapter.quantization else 0
            return float((unpacked + (12 if self.dora else 0)) * self.shape.largest)
        copies = float(self.size * self.shape.packed) if self.mixed else 0.0
        return copies / self.world if self.cfg.runtime.launch in SHARDED else copies

    @property
    def optimizer(self) -> float:
        held = float(optimizer_bytes(self.cfg) * self.trained)
        return held / self.world if self.cfg.runtime.launch in SHARED else held

    @property
    def buckets(self) -> float:
        """What DDP sends gradients in: a second copy of all of them, from the first step to the last."""
        return 4.0 * self.trained if self.world > 1 and self.cfg.runtime.launch not in SHARED else 0.0

    @property
    def gradients(self) -> float:
        """All of them, when the last backward pass of a step ends."""
        launch = self.cfg.runtime.launch
        shared = launch in SHARED and launch != "zero1"
        return 4.0 * self.trained / (self.world if shared else 1) + self.buckets

    @property
    def accumulates(self) -> bool:
        """Gradients are there before the last backward pass, of the micro-batches before."""
        return self.rows > 0 and self.cfg.batch // self.world > self.rows

    @property
    def gradients_before(self) -> float:
        return self.gradients if self.accumulates else self.buckets

    @property
    def head(self) -> float:
        """The output layer's gradient before it is added."""
        return 4.0 * self.shape.vocabulary * self.shape.hidden if self.full else 0.0

    @property
    def embeddings(self) -> float:
        """Dense, while it is added to what is there: of tied ones the head's as well, and the sum of the two."""
        return self.head * ((2 if self.shape.tied else 0) + self.accumulates)

    @property
    def largest(self) -> float:
        """One linear layer's gradient before it is added, as it was computed and in float32."""
        return float((6 if self.mixed else 4) * self.shape.largest) if self.full else 0.0

    # ── what a token takes ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tokens(self) -> int:
        return self.rows * self.longest * (1 if self.cfg.trainer == "kto" else 2)

    @property
    def beside(self) -> int:
        """Of demonstrations, whose logits are all there."""
        return self.longest * (-(-self.cfg.rehearsed // (self.cfg.batch // self.rows)) if self.rows else 0)

    @property
    def stream(self) -> int:
        """Full weights are float32, and so is what flows between the blocks."""
        return 4 if self.full else self.size

    @property
    def norm(self) -> int:
        return (4 + self.stream if self.full else 4) * self.shape.hidden  # frozen scales need no normalised copy

    @property
    def head_norms(self) -> int:
        """Of queries and keys, which come from a linear layer in its precision."""
        return (4 + self.size if self.full else 4) * (self.shape.queries + self.shape.keys)

    @property
    def block(self) -> int:
        """What a block's backward pass reads again."""
        size, shape = self.size, self.shape
        # With a mask there is no kernel for grouped heads: keys and values are repeated, and each call makes of it
        # numbers of its own to be added.
        attention = size * (4 * shape.queries + self.longest)
        gates = size * 3 * shape.inner
        norms = shape.norms * self.norm + (self.head_norms if shape.normed_heads else 0)
        return norms + attention + gates + (self.read_by_linear if self.full else self.read_by_adapters)

    @property
    def read_by_linear(self) -> int:
        """Five of them read the block's width, and mixed precision rounds a copy for each."""
        return self.size * ((5 if self.mixed else 2) * self.shape.hidden + self.shape.inner)

    @property
    def read_by_adapters(self) -> int:
        """Frozen layers keep nothing. DoRA reads what its layer gave and what the adapter adds as well."""
        linear, names = self.shape.linear(), set(self.adapted)
        if self.mixed:
            read = sum(linear[name][0] for name in names)
        else:  # what several read is kept once; o_proj's is counted with attention
            read = self.shape.hidden * (
                bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"})
            )
            read += self.shape.inner if "down_proj" in names else 0
        given = 2 * sum(linear[name][1] for name in names) if self.dora else 0
        return self.size * (read + given)

    @property
    def passing(self) -> int:
        """The widest that comes and goes: the gates' gradients, or the float32 copy that an adapter makes of their
        product, with four tensors of the stream that the block has not let go by then; DoRA's results in float32."""
        inner = self.shape.inner
        if self.full or not self.mixed:
            return 2 * self.size * inner
        widest = (self.size + 4) * inner if "down_proj" in self.adapted else 2 * self.size * inner
        return widest + 4 * self.stream * self.shape.hidden + (8 * inner if self.dora else 0)

    @property
    def after(self) -> int:
        """Behind the last block: a norm, its output, and the copy of that without each row's last token."""
        return self.norm + 2 * self.stream * self.shape.hidden

    @property
    def into_head(self) -> int:
        return (4 + (self.stream if self.stream != 4 else 0)) * self.shape.hidden  # summed in float32

    # ── logits ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def at_once(self) -> int:
        return self.vocabulary * (self.beside + (self.tokens if self.cfg.trainer in AT_ONCE else 0))

    @property
    def vocabulary(self) -> int:
        return self.shape.vocabulary

    @property
    def _read_forward(self) -> float:
        """In float32; for the chosen half once more as it is laid out anew, and as log-probabilities."""
        return 8.0 * self.at_once + self._tile(13)

    @property
    def _logits_backward(self) -> float:
        """Two parts of the loss read them, and their gradients are added; without a kernel for it there are copies."""
        head = self.head / 2 if self.at_once and self.mixed else 0.0  # rounded
        return (12.0 if self.gpu else 18.0) * self.at_once + head

    @property
    def _head(self) -> float:
        return self._tile(29)

    def _tile(self, folded: int) -> float:
        """A tile, the weights that made it, and on a CPU the copies that a GPU's kernel does without."""
        if self.cfg.trainer in AT_ONCE:
            return 0.0
        rows, columns = min(ROWS, self.tokens), min(COLUMNS, self.vocabulary)
        cast = self.size * columns * self.shape.hidden if self.full and self.mixed else 0
        return self.size * rows * COLUMNS + cast + (0 if self.gpu else folded * rows * columns)

    @property
    def _look(self) -> float:
        """Of one longest row or of shorter ones that have no more tokens: in float32, and as log-probabilities."""
        return 8.0 * self.vocabulary * self.cfg.max_length if self.rows else 0.0

    # ── answers of its own ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def between_steps(self) -> float:
        return self.weights + self.rounded + self.buckets + self.optimizer

    @property
    def answer(self) -> float:
        """One that is drawn: what attention remembers of it, and what a pass over its prompt holds of a block."""
        cached = (self.stream + self.size) * self.shape.keys * self.shape.layers  # keys turn in the stream's precision
        prompt = max(1, self.cfg.max_length - self.cfg.guards.tokens)
        return float(self.cfg.max_length * cached + prompt * (self.size * 3 * self.shape.inner + self.passing))


def _base(shape: Shape, adapter: LoraAdapter, size: int) -> float:
    if (quantization := adapter.quantization) is None:
        return float(size * shape.parameters)
    scales = {8: 0.0, 4: 1 / 64 * (1 + 4 / 256) if quantization.double else 4 / 64}[quantization.bits]
    return (quantization.bits / 8 + scales) * shape.packed + size * (shape.parameters - shape.packed)
