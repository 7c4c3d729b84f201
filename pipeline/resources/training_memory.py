"""What a training step holds of one device's memory at its fullest moment, told before anything is loaded.

The moments are those of TRL's trainers under torch's autograd; tests/test_moments.py holds them to measured bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.config import LoraAdapter, TrainConfig
from pipeline.config.launch import SHARDED_STATE, SHARDED_WEIGHTS
from pipeline.resources.activation_memory import Token
from pipeline.resources.model_shape import MIB, Shape, amount, optimizer_bytes, trained_in

ROWS, COLUMNS = 4096, 32768  # of the tile of logits that TRL's fused head has in memory
COPIED_FORWARD, COPIED_BACKWARD = (
    13,
    29,
)  # bytes for each logit of a tile, where no GPU's kernel does without
# What a training's process holds of main memory before it has any tensor: torch, transformers, TRL, peft, datasets and
# polars. Measured as VmRSS less the weights, once the trainer is built: 500 MiB of data, 216 MiB of mapped code.
LIBRARIES = 716 * MIB
UNTILED = "cpo", "orpo"  # the trainers without that head, which have all logits at once


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at one moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    libraries: float = 0.0  # where the device's memory is the process' own

    @property
    def total(self) -> float:
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.libraries
        )

    def __str__(self) -> str:
        names = [
            "weights",
            "gradients",
            "optimizer",
            "activations",
            "logits",
            *(["libraries"] if self.libraries else []),
        ]
        parts = {name: getattr(self, name) for name in names}
        return (
            f"{amount(self.total)} ("
            + ", ".join(f"{name} {amount(size)}" for name, size in parts.items())
            + ")"
        )


def memory(
    shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int, gpu: bool = True
) -> Memory:
    """With `rows` pairs of at most `longest` tokens a side in memory at once, on each of `world` devices.

    On a CPU it is what the whole process comes to, as the kernel counts it (VmHWM); on a GPU what torch takes of it.

    Demonstrations that are rehearsed with them are taken to be as long, and rows to be padded, so that attention has
    a mask.
    """
    fullest = max(
        Training(shape, cfg, rows, longest, world, gpu).moments(), key=lambda moment: moment.total
    )
    return fullest if gpu else replace(fullest, libraries=LIBRARIES)


def most_rows(
    shape: Shape,
    cfg: TrainConfig,
    each: int,
    longest: int,
    world: int,
    room: float,
    gpu: bool = True,
) -> int:
    """The largest divisor of a process' share of the batch that fits; 1 where even that does not."""
    fits = [
        n
        for n in range(1, each + 1)
        if each % n == 0 and memory(shape, cfg, n, longest, world, gpu).total <= room
    ]
    return max(fits, default=1)


@dataclass(frozen=True)
class Training:
    """One of `world` processes, and what it holds in bytes."""

    shape: Shape
    cfg: TrainConfig
    rows: int
    longest: int
    world: int
    gpu: bool

    @cached_property
    def token(self) -> Token:
        return Token(self.shape, self.cfg, self.longest)

    def moments(self) -> Iterator[Memory]:
        """In the order of a step, and then a look at the dev pairs."""
        yield from self._at_the_head()
        yield from self._back_through_blocks()
        yield self._at(0, self.gradients + self.embeddings, 0)
        yield self._at(self.rounded + self.read_for_a_look, self.buckets, 0, self._look)

    def _at_the_head(self) -> Iterator[Memory]:
        """The end of the forward pass, and the backward passes of logits that are all there and of tiled ones."""
        kept, before = self.kept + self.token.after, self.gradients_before
        yield self._at(self.rounded, before, self.read * kept, self._read_forward)
        yield self._at(self.rounded_behind, before, self.read * kept, self._logits_backward)
        kept += self.token.into_head
        yield self._at(
            self.rounded_behind, before + self.head, self.tokens * kept, self._tile(COPIED_BACKWARD)
        )

    def _back_through_blocks(self) -> Iterator[Memory]:
        """The last block first, with what all others keep; in the end the first one, with all gradients."""
        one = self.token.block + self.token.passing
        kept = self.kept + (one if self.cfg.gradient_checkpointing else self.token.passing)
        waiting = (
            self.head if self.shape.tied else 0.0
        )  # its gradient is added when the embeddings' is there as well
        to_come = 0.0 if self.accumulates else self.head  # the embeddings'
        gradients = self.gradients_before + max(waiting, to_come) + self.largest
        yield self._at(self.rounded_behind, gradients, self.read * kept)
        gradients = self.gradients - to_come + waiting + self.largest
        yield self._at(self.rounded_of_one, gradients, self.read * (self.longest + one))

    def _at(
        self, rounded: float, gradients: float, activations: float, logits: float = 0.0
    ) -> Memory:
        return Memory(self.weights + rounded, gradients, self.optimizer, activations, logits)

    # ── what there is whatever is read ────────────────────────────────────────────────────────────────────────────

    @cached_property
    def trained(self) -> int:
        return trained_in(self.shape, self.cfg)

    @cached_property
    def weights(self) -> float:
        if isinstance(self.cfg.adapter, LoraAdapter):
            held = _base(self.shape, self.cfg.adapter, self.token.size) + 4.0 * self.trained
        else:
            held = 4.0 * self.shape.parameters * (2 if self.cfg.logps == "live" else 1)
        if self.cfg.runtime.launch in SHARDED_WEIGHTS:
            return (
                held / self.world + 4.0 * self.shape.packed / self.shape.layers
            )  # one block at a time is whole
        return held

    @property
    def looks(self) -> bool:
        """Whether the policy draws answers of its own as it is trained."""
        return bool(
            self.cfg.guards.prompts and (self.world == 1 or self.cfg.runtime.watch == "always")
        )

    @property
    def read_for_a_look(self) -> float:
        """The reference of whole weights, which is given back; an adapter's is what it stands on."""
        if not (self.looks and self.token.full) or self.cfg.keeps_reference:
            return 0.0
        shares = self.world if self.cfg.runtime.launch in SHARDED_WEIGHTS else 1
        return float(self.token.size * self.shape.parameters) / shares

    @property
    def rounded(self) -> float:
        """Mixed precision keeps its bfloat16 copies until the pass ends; of a quantised base one layer is unpacked,
        and DoRA adds one layer's adapter to it in float32 to know the norms."""
        if isinstance(self.cfg.adapter, LoraAdapter):
            unpacked = self.token.size if self.cfg.adapter.quantization else 0
            return float((unpacked + (12 if self.token.dora else 0)) * self.shape.largest)
        copies = float(self.token.size * self.shape.packed) if self.token.mixed else 0.0
        return copies / self.world if self.cfg.runtime.launch in SHARDED_WEIGHTS else copies

    @property
    def rounded_of_one(self) -> float:
        return self.rounded / self.shape.layers if self.token.full else self.rounded

    @property
    def rounded_behind(self) -> float:
        """In the backward pass: a block that is run again rounds its own."""
        return self.rounded_of_one if self.cfg.gradient_checkpointing else self.rounded

    @property
    def optimizer(self) -> float:
        held = float(optimizer_bytes(self.cfg) * self.trained)
        return held / self.world if self.cfg.runtime.launch in SHARDED_STATE else held

    @property
    def buckets(self) -> float:
        """What DDP sends gradients in: a second copy of all of them, from the first step to the last."""
        return (
            4.0 * self.trained
            if self.world > 1 and self.cfg.runtime.launch not in SHARDED_STATE
            else 0.0
        )

    @property
    def gradients(self) -> float:
        """All of them, when the last backward pass of a step ends."""
        launch = self.cfg.runtime.launch
        shared = launch in SHARDED_STATE and launch != "zero1"
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
        return 4.0 * self.shape.vocabulary * self.shape.hidden if self.token.full else 0.0

    @property
    def embeddings(self) -> float:
        """Dense, while it is added to what is there: of tied ones the head's as well, and the sum of the two."""
        return self.head * ((2 if self.shape.tied else 0) + self.accumulates)

    @property
    def largest(self) -> float:
        """One linear layer's gradient before it is added, as it was computed and in float32."""
        return (
            float((6 if self.token.mixed else 4) * self.shape.largest) if self.token.full else 0.0
        )

    # ── what is read and kept ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def tokens(self) -> int:
        return self.rows * self.longest * (1 if self.cfg.trainer == "kto" else 2)

    @property
    def beside(self) -> int:
        """Of demonstrations, whose logits are all there."""
        return self.longest * (
            -(-self.cfg.rehearsal_rows // (self.cfg.batch // self.rows)) if self.rows else 0
        )

    @property
    def read(self) -> int:
        return self.tokens + self.beside

    @property
    def kept(self) -> int:
        """What a token leaves behind in all blocks, until its backward pass: the input alone where one is run again."""
        again = self.token.stream * self.shape.hidden
        of_each = again if self.cfg.gradient_checkpointing else self.token.block
        return self.longest + self.shape.layers * (of_each + self.token.past_checkpoints)

    # ── logits ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def untiled(self) -> int:
        """How many are all there."""
        return self.shape.vocabulary * (
            self.beside + (self.tokens if self.cfg.trainer in UNTILED else 0)
        )

    @property
    def _read_forward(self) -> float:
        """In float32; for the chosen half once more as it is laid out anew, and as log-probabilities."""
        return 8.0 * self.untiled + self._tile(COPIED_FORWARD)

    @property
    def _logits_backward(self) -> float:
        """Two parts of the loss read them, and their gradients are added; without a kernel for it there are copies."""
        head = self.head / 2 if self.untiled and self.token.mixed else 0.0  # rounded
        return (12.0 if self.gpu else 18.0) * self.untiled + head

    def _tile(self, copied: int) -> float:
        """A tile, the weights that made it, and on a CPU the copies of it."""
        if self.cfg.trainer in UNTILED:
            return 0.0
        rows, columns = min(ROWS, self.tokens), min(COLUMNS, self.shape.vocabulary)
        cast = (
            self.token.size * columns * self.shape.hidden
            if self.token.full and self.token.mixed
            else 0
        )
        return (
            self.token.size * rows * COLUMNS + cast + (0 if self.gpu else copied * rows * columns)
        )

    @property
    def _look(self) -> float:
        """Of one longest row or of shorter ones that have no more tokens: in float32, and as log-probabilities."""
        return 8.0 * self.shape.vocabulary * self.cfg.max_length if self.rows else 0.0

    # ── answers of its own ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def between_steps(self) -> float:
        libraries = 0 if self.gpu else LIBRARIES
        return self.weights + self.rounded + self.buckets + self.optimizer + libraries


def _base(shape: Shape, adapter: LoraAdapter, size: int) -> float:
    if (quantization := adapter.quantization) is None:
        return float(size * shape.parameters)
    scales = {8: 0.0, 4: 1 / 64 * (1 + 4 / 256) if quantization.double else 4 / 64}[
        quantization.bits
    ]
    return (quantization.bits / 8 + scales) * shape.packed + size * (
        shape.parameters - shape.packed
    )
