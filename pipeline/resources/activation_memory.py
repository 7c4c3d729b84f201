"""What a token takes of memory while a model is trained: in each block, between the blocks, behind the last."""

from dataclasses import dataclass
from functools import cached_property

from pipeline.config import FullAdapter, LoraAdapter, TrainConfig
from pipeline.resources.model_shape import SIZE, Shape, adapted_in


@dataclass(frozen=True)
class Token:
    """Bytes, in rows of `longest` tokens that are padded, so that attention has a mask."""

    shape: Shape
    cfg: TrainConfig
    longest: int

    @property
    def full(self) -> bool:
        return isinstance(self.cfg.adapter, FullAdapter)

    @property
    def mixed(self) -> bool:
        return self.cfg.dtype == "bfloat16"

    @cached_property
    def adapted(self) -> list[str]:
        return (
            adapted_in(self.shape, self.cfg.adapter)
            if isinstance(self.cfg.adapter, LoraAdapter)
            else []
        )

    @property
    def dora(self) -> bool:
        return isinstance(self.cfg.adapter, LoraAdapter) and self.cfg.adapter.dora

    @property
    def size(self) -> int:
        return SIZE[self.cfg.dtype]

    @property
    def stream(self) -> int:
        """Full weights are float32, and so is what flows between the blocks."""
        return 4 if self.full else self.size

    @property
    def norm(self) -> int:
        return (
            4 + self.stream if self.full else 4
        ) * self.shape.hidden  # frozen scales need no normalised copy

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
        return (
            norms
            + attention
            + gates
            + (self.read_by_linear if self.full else self.read_by_adapters)
        )

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
                bool(names & {"q_proj", "k_proj", "v_proj"})
                + bool(names & {"gate_proj", "up_proj"})
            )
            read += self.shape.inner if "down_proj" in names else 0
        given = 2 * sum(linear[name][1] for name in names) if self.dora else 0
        return self.size * (read + given)

    @property
    def past_checkpoints(self) -> int:
        """bitsandbytes' 8-bit layers keep what they read where checkpointing does not see it."""
        quantization = getattr(self.cfg.adapter, "quantization", None)
        read = 2 * self.shape.hidden + self.shape.queries + self.shape.inner
        return self.size * read if quantization and quantization.bits == 8 else 0

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
        return (
            4 + (self.stream if self.stream != 4 else 0)
        ) * self.shape.hidden  # summed in float32

    @property
    def answer(self) -> float:
        """One that is drawn: what attention remembers of it, and what a pass over its prompt holds of a block."""
        cached = (
            (self.stream + self.size) * self.shape.keys * self.shape.layers
        )  # keys turn in the stream's precision
        prompt = max(1, self.cfg.max_length - self.cfg.guards.tokens)
        return float(
            self.cfg.max_length * cached
            + prompt * (self.size * 3 * self.shape.inner + self.passing)
        )
