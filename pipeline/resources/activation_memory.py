"""Memory that one token takes while a model is trained: in the blocks and after the last one.

Follows the decoder layers of transformers (models/llama/modeling_llama.py and its relatives), what
torch's autograd keeps of them for the backward pass, and peft's LoRA layers (tuners/lora/layer.py).
"""

from dataclasses import dataclass
from functools import cached_property

from pipeline.config import FullAdapter, LoraAdapter, TrainConfig
from pipeline.resources.model_shape import DTYPE_BYTES, Shape, list_adapted


@dataclass(frozen=True)
class TokenMemory:
    """In bytes, for rows of `longest` tokens that are padded, so attention has a mask."""

    shape: Shape
    cfg: TrainConfig
    longest: int

    @property
    def is_full(self) -> bool:
        return isinstance(self.cfg.adapter, FullAdapter)

    @property
    def is_mixed(self) -> bool:
        """Mixed precision: autocast to bfloat16."""
        return self.cfg.dtype == "bfloat16"

    @property
    def is_dora(self) -> bool:
        return isinstance(self.cfg.adapter, LoraAdapter) and self.cfg.adapter.dora

    @cached_property
    def adapted_layers(self) -> list[str]:
        if not isinstance(self.cfg.adapter, LoraAdapter):
            return []
        return list_adapted(self.shape, self.cfg.adapter)

    @property
    def size(self) -> int:
        """Of a number that a linear layer computes with."""
        return DTYPE_BYTES[self.cfg.dtype]

    @property
    def stream(self) -> int:
        """Of a number between blocks: full weights are float32, and so is the residual stream."""
        return 4 if self.is_full else self.size

    @property
    def norm(self) -> int:
        # LlamaRMSNorm computes in float32 (4 bytes). A trained scale also needs the normalised
        # input, in the stream's precision, for its gradient; a frozen scale does not.
        normalised = self.stream if self.is_full else 0
        return (4 + normalised) * self.shape.hidden

    @property
    def head_norms(self) -> int:
        """Norms of queries and keys, which come from a linear layer in its precision."""
        normalised = self.size if self.is_full else 0
        return (4 + normalised) * (self.shape.queries + self.shape.keys)

    @property
    def block(self) -> int:
        """What a block's backward pass reads again."""
        size, shape = self.size, self.shape
        # Queries, keys, values and the output. With a mask, integrations/sdpa_attention.py of
        # transformers has no kernel for grouped heads (use_gqa_in_sdpa): keys and values are
        # repeated to the queries' width. Each call also turns its row of the boolean mask,
        # `longest` numbers, into numbers to add.
        attention = size * (4 * shape.queries + self.longest)
        # down_proj(act(gate) * up): the gate before and after its activation, and up. Their product
        # is counted where down_proj reads it.
        gates = size * 3 * shape.inner
        norms = shape.norms * self.norm + (self.head_norms if shape.normed_heads else 0)
        linear = self.read_by_linear if self.is_full else self.read_by_adapters
        return norms + attention + gates + linear

    @property
    def read_by_linear(self) -> int:
        """Inputs of the linear layers, for the gradients of their weights."""
        # q, k, v, gate and up read the block's width. Autocast rounds a bfloat16 copy for each of
        # the five; without it q, k and v share one input, gate and up another. down_proj reads the
        # inner width; o_proj's input is attention's output, counted above.
        inputs = 5 if self.is_mixed else 2
        return self.size * (inputs * self.shape.hidden + self.shape.inner)

    @property
    def read_by_adapters(self) -> int:
        """Inputs of the adapters. Frozen linear layers keep nothing."""
        linear, names = self.shape.linear_layers(), set(self.adapted_layers)
        if self.is_mixed:  # a rounded copy for each adapter
            inputs = sum(linear[name][0] for name in names)
        else:  # adapters of the same input share it; o_proj's input is counted with attention
            shared = bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(
                names & {"gate_proj", "up_proj"}
            )
            inputs = self.shape.hidden * shared
            inputs += self.shape.inner if "down_proj" in names else 0
        # DoRA also reads its layer's output and the adapter's output.
        outputs = 2 * sum(linear[name][1] for name in names) if self.is_dora else 0
        return self.size * (inputs + outputs)

    @property
    def outside_checkpoints(self) -> int:
        """8-bit layers of bitsandbytes keep their inputs where checkpointing does not free them."""
        quantization = getattr(self.cfg.adapter, "quantization", None)
        # Inputs of q, k and v; of gate and up; of o_proj; of down_proj.
        inputs = 2 * self.shape.hidden + self.shape.queries + self.shape.inner
        return self.size * inputs if quantization and quantization.bits == 8 else 0

    @property
    def transient(self) -> int:
        """The largest temporary memory in a block's backward pass."""
        inner = self.shape.inner
        gate_gradients = 2 * self.size * inner
        if self.is_full or not self.is_mixed:
            return gate_gradients
        # peft casts an adapter's input to the adapter's float32: for down_proj that is the gates'
        # product, with its bfloat16 original.
        widest = (self.size + 4) * inner if "down_proj" in self.adapted_layers else gate_gradients
        # Four tensors of the residual stream are not yet freed; DoRA's results are float32.
        return widest + 4 * self.stream * self.shape.hidden + (8 * inner if self.is_dora else 0)

    @property
    def after_last_block(self) -> int:
        """The last norm, its output, and that output's copy without each row's last token."""
        return self.norm + 2 * self.stream * self.shape.hidden

    @property
    def head_input_gradient(self) -> int:
        # TRL's kernels/chunked_logprob.py sums it in float32, then casts it to the stream.
        return (4 + (self.stream if self.stream != 4 else 0)) * self.shape.hidden

    @property
    def generated_answer(self) -> float:
        """One answer of the longest kind: its KV cache, and a block's part of the prompt's pass."""
        # Rotary embeddings leave keys in the stream's precision; values stay in the linear layers'.
        cached = (self.stream + self.size) * self.shape.keys * self.shape.layers
        prompt = max(1, self.cfg.max_length - self.cfg.guards.tokens)
        pass_over_prompt = prompt * (self.size * 3 * self.shape.inner + self.transient)
        return float(self.cfg.max_length * cached + pass_over_prompt)
