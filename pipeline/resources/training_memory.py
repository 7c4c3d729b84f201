"""Peak memory of a training step on one device, estimated before anything is loaded.

The moments follow TRL's trainers under torch's autograd. tests/resources/test_training_memory.py
compares them with measured bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.config import LoraAdapter, TrainConfig
from pipeline.config.launch import SHARDED_STATE, SHARDED_WEIGHTS
from pipeline.resources.activation_memory import TokenMemory
from pipeline.resources.model_shape import MIB, Shape, count_trained, format_bytes, optimizer_bytes

# The tile of logits that TRL's fused head holds: TOKEN_CHUNK_SIZE of trl/kernels/chunked_logprob.py
# by _CHUNKED_LOGPROB_CHUNK_SIZE of trl/trainer/utils.py.
TILE_ROWS, TILE_COLUMNS = 4096, 32768
# Bytes for each logit of a tile without Triton: _forward_tile and _backward_tile copy it.
COPIED_FORWARD, COPIED_BACKWARD = 13, 29
# Main memory of a training's process before it has any tensor: torch, transformers, TRL, peft,
# datasets and polars. Measured as VmRSS less the weights, once the trainer is built: 500 MiB of
# data, 216 MiB of mapped code.
LIBRARIES = 716 * MIB


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at one moment."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    libraries: float = 0.0  # on a CPU, where they share the memory

    @property
    def parts(self) -> dict[str, float]:
        return {name: size for name, size in vars(self).items() if size or name != "libraries"}

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = (f"{name} {format_bytes(size)}" for name, size in self.parts.items())
        return f"{format_bytes(self.total)} ({', '.join(parts)})"


@dataclass(frozen=True)
class ProcessMemory:
    """What one of `world` training processes holds, in bytes.

    `rows` pairs of at most `longest` tokens a side are in memory at once. On a CPU this is the
    whole process as the kernel counts it (VmHWM), on a GPU what torch allocates. Assumes that
    rehearsed demonstrations are as long as the pairs, and that rows are padded, so attention has a
    mask.
    """

    shape: Shape
    cfg: TrainConfig
    rows: int
    longest: int
    world: int
    gpu: bool

    @cached_property
    def token(self) -> TokenMemory:
        return TokenMemory(self.shape, self.cfg, self.longest)

    @cached_property
    def peak(self) -> MemoryEstimate:
        """The fullest moment."""
        fullest = max(self.moments(), key=lambda moment: moment.total)
        return fullest if self.gpu else replace(fullest, libraries=LIBRARIES)

    def moments(self) -> Iterator[MemoryEstimate]:
        """In the order of a step; the last one is an evaluation of the dev pairs."""
        yield from self._moments_at_head()
        yield from self._moments_in_blocks()
        yield self._moment(0, self.gradients + self.embedding_gradients, 0)
        weights = self.rounded_copies + self.reference_for_evaluation
        yield self._moment(weights, self.ddp_buckets, 0, self._evaluation_logits)

    def _moments_at_head(self) -> Iterator[MemoryEstimate]:
        """The end of the forward pass, then the backward passes of untiled and of tiled logits."""
        a_token = self.kept_per_token + self.token.after_last_block
        activations, carried = self.tokens_in_pass * a_token, self.gradients_carried
        yield self._moment(self.rounded_copies, carried, activations, self._logits_forward)
        copies = self.rounded_copies_backward
        yield self._moment(copies, carried, activations, self._logits_backward)
        activations = self.pair_tokens * (a_token + self.token.head_input_gradient)
        gradients = carried + self.head_gradient
        yield self._moment(copies, gradients, activations, self._tile_bytes(COPIED_BACKWARD))

    def _moments_in_blocks(self) -> Iterator[MemoryEstimate]:
        """Backward through the last block while the others wait, then through the first one."""
        block = self.token.block + self.token.transient
        # With checkpointing the last block has run again, and all its activations are back.
        recomputed = block if self.cfg.gradient_checkpointing else self.token.transient
        activations = self.tokens_in_pass * (self.kept_per_token + recomputed)
        # A tied head's gradient waits until the embeddings' gradient joins it at the end.
        waiting = self.head_gradient if self.shape.tied else 0.0
        # Without gradients from an earlier micro-batch, the embeddings' is still to come.
        to_come = 0.0 if self.accumulates_gradients else self.head_gradient
        gradients = self.gradients_carried + max(waiting, to_come) + self.largest_linear_gradient
        yield self._moment(self.rounded_copies_backward, gradients, activations)
        gradients = self.gradients - to_come + waiting + self.largest_linear_gradient
        activations = self.tokens_in_pass * (self.longest + block)
        yield self._moment(self.rounded_copies_of_block, gradients, activations)

    def _moment(
        self, copies: float, gradients: float, activations: float, logits: float = 0.0
    ) -> MemoryEstimate:
        """`copies`: of weights, for this moment only."""
        return MemoryEstimate(self.weights + copies, gradients, self.optimizer, activations, logits)

    # ── whatever is read ────────────────────────────────────────────────────────────────────────

    @property
    def weight_shares(self) -> int:
        """Among how many processes the weights are divided."""
        return self.world if self.cfg.runtime.launch in SHARDED_WEIGHTS else 1

    @property
    def state_shares(self) -> int:
        """Among how many processes the optimizer's state is divided."""
        return self.world if self.cfg.runtime.launch in SHARDED_STATE else 1

    @cached_property
    def trained_parameters(self) -> int:
        return count_trained(self.shape, self.cfg)

    @cached_property
    def weights(self) -> float:
        if isinstance(self.cfg.adapter, LoraAdapter):
            # The base in its dtype, the adapter in float32.
            base = _base_weights(self.shape, self.cfg.adapter, self.token.size)
            weights = base + 4.0 * self.trained_parameters
        else:  # the policy in float32, and as much again for a reference that runs live
            models = 2 if self.cfg.reference_logps == "online" else 1
            weights = 4.0 * self.shape.parameters * models
        if self.weight_shares == 1:
            return weights
        # Each process has its share, and one block at a time is gathered.
        return weights / self.weight_shares + 4.0 * self.shape.linear_parameters / self.shape.layers

    @property
    def generates_answers(self) -> bool:
        """Whether evaluations within the training sample answers from the policy."""
        runs_here = self.world == 1 or self.cfg.runtime.eval_when_distributed
        return bool(self.cfg.guards.prompts and runs_here)

    @property
    def reference_for_evaluation(self) -> float:
        """A full reference is loaded for an evaluation and freed; an adapter's is its own base."""
        if not (self.generates_answers and self.token.is_full) or self.cfg.keeps_reference:
            return 0.0
        return float(self.token.size * self.shape.parameters) / self.weight_shares

    @property
    def rounded_copies(self) -> float:
        """Copies of weights that a pass makes."""
        if isinstance(self.cfg.adapter, LoraAdapter):
            # One layer of a quantised base is unpacked at a time. DoRA's get_weight_norm
            # (peft/tuners/lora/dora.py) adds the adapter's product to it in float32: the product,
            # its scaled copy and the sum.
            unpacked = self.token.size if self.cfg.adapter.quantization else 0
            norms = 3 * 4 if self.token.is_dora else 0
            return float((unpacked + norms) * self.shape.largest_linear)
        if not self.token.is_mixed:
            return 0.0
        # torch.autocast caches a bfloat16 copy of each linear layer until the pass ends.
        return float(self.token.size * self.shape.linear_parameters) / self.weight_shares

    @property
    def rounded_copies_of_block(self) -> float:
        if not self.token.is_full:
            return self.rounded_copies
        return self.rounded_copies / self.shape.layers

    @property
    def rounded_copies_backward(self) -> float:
        """With checkpointing a block that runs again makes its own copies."""
        if self.cfg.gradient_checkpointing:
            return self.rounded_copies_of_block
        return self.rounded_copies

    @property
    def optimizer(self) -> float:
        return float(optimizer_bytes(self.cfg) * self.trained_parameters) / self.state_shares

    @property
    def ddp_buckets(self) -> float:
        """DDP's buckets are a second copy of all gradients, from the first step to the last."""
        uses_ddp = self.world > 1 and self.state_shares == 1
        return 4.0 * self.trained_parameters if uses_ddp else 0.0

    @property
    def gradients(self) -> float:
        """All gradients, in float32, when a step's last backward pass ends."""
        # ZeRO-1 shares optimizer state only.
        shares = 1 if self.cfg.runtime.launch == "zero1" else self.state_shares
        return 4.0 * self.trained_parameters / shares + self.ddp_buckets

    @property
    def accumulates_gradients(self) -> bool:
        """Whether gradients of earlier micro-batches are there before the last backward pass."""
        return self.rows > 0 and self.cfg.batch // self.world > self.rows

    @property
    def gradients_carried(self) -> float:
        return self.gradients if self.accumulates_gradients else self.ddp_buckets

    @property
    def head_gradient(self) -> float:
        """The output layer's gradient, in float32, before it is added to the others."""
        if not self.token.is_full:
            return 0.0
        return 4.0 * self.shape.vocabulary * self.shape.hidden

    @property
    def embedding_gradients(self) -> float:
        """The embeddings' dense gradient, while it is added to an earlier one."""
        # Tied embeddings add the head's gradient, and hold the sum of the two as well.
        tied = 2 if self.shape.tied else 0
        return self.head_gradient * (tied + self.accumulates_gradients)

    @property
    def largest_linear_gradient(self) -> float:
        """One linear layer's gradient before it is added to the others."""
        if not self.token.is_full:
            return 0.0
        # In float32; mixed precision computes it in bfloat16 first (2 bytes more).
        return float((6 if self.token.is_mixed else 4) * self.shape.largest_linear)

    # ── activations ─────────────────────────────────────────────────────────────────────────────

    @property
    def pair_tokens(self) -> int:
        return self.rows * self.longest * self.cfg.answers_per_row

    @property
    def rehearsal_tokens(self) -> int:
        """Tokens of the demonstrations in a micro-batch."""
        if not self.rows:
            return 0
        micro_batches = self.cfg.batch // self.rows
        return self.longest * -(-self.cfg.rehearsal_rows // micro_batches)

    @property
    def tokens_in_pass(self) -> int:
        return self.pair_tokens + self.rehearsal_tokens

    @property
    def kept_per_token(self) -> int:
        """Of one token in all blocks, until its backward pass; and its row of the mask."""
        # A checkpointed block keeps its input alone.
        block_input = self.token.stream * self.shape.hidden
        block = block_input if self.cfg.gradient_checkpointing else self.token.block
        return self.longest + self.shape.layers * (block + self.token.outside_checkpoints)

    # ── logits ──────────────────────────────────────────────────────────────────────────────────

    @property
    def untiled_logits(self) -> int:
        """How many logits are there at once: those of demonstrations, which no fused head tiles."""
        return self.shape.vocabulary * self.rehearsal_tokens

    @property
    def _logits_forward(self) -> float:
        # In float32 (4), with a contiguous copy and log-probabilities of about half of them.
        return 8.0 * self.untiled_logits + self._tile_bytes(COPIED_FORWARD)

    @property
    def _logits_backward(self) -> float:
        # The logits and the gradients of two terms of the loss, 4 bytes each, which are summed; a
        # CPU makes copies for it. Mixed precision also holds the head's gradient in bfloat16.
        head = self.head_gradient / 2 if self.untiled_logits and self.token.is_mixed else 0.0
        return (12.0 if self.gpu else 18.0) * self.untiled_logits + head

    def _tile_bytes(self, copied: int) -> float:
        """A tile of logits, the cast rows of the head that make it, and a CPU's copies of it."""
        rows = min(TILE_ROWS, self.pair_tokens)
        columns = min(TILE_COLUMNS, self.shape.vocabulary)
        is_cast = self.token.is_full and self.token.is_mixed
        cast_head = self.token.size * columns * self.shape.hidden if is_cast else 0
        copies = 0 if self.gpu else copied * rows * columns
        # TRL allocates the tile in its full width, even for a smaller vocabulary.
        return self.token.size * rows * TILE_COLUMNS + cast_head + copies

    @property
    def _evaluation_logits(self) -> float:
        """Of one longest row, or of shorter rows with no more tokens than that."""
        # In float32, and as log-probabilities.
        return 8.0 * self.shape.vocabulary * self.cfg.max_length if self.rows else 0.0

    # ── generation within the training ──────────────────────────────────────────────────────────

    @property
    def between_steps(self) -> float:
        libraries = 0 if self.gpu else LIBRARIES
        weights = self.weights + self.rounded_copies
        return weights + self.ddp_buckets + self.optimizer + libraries

    def count_answers_at_once(self, available: float, most: int) -> int:
        """As many of the longest answers as fit between two steps, but at least one."""
        free = available - self.between_steps
        return max(1, min(most, int(free // self.token.generated_answer)))


def _base_weights(shape: Shape, adapter: LoraAdapter, size: int) -> float:
    if (quantization := adapter.quantization) is None:
        return float(size * shape.parameters)
    # bitsandbytes (quantize_4bit in functional.py) scales blocks of 64 weights by a float32 number
    # each: 4 / 64 bytes a weight. Double quantisation keeps these numbers in 8 bits, with a float32
    # number for each 256 of them.
    double = 1 / 64 * (1 + 4 / 256)
    scales = {8: 0.0, 4: double if quantization.double else 4 / 64}[quantization.bits]
    linear = (quantization.bits / 8 + scales) * shape.linear_parameters
    return linear + size * (shape.parameters - shape.linear_parameters)
