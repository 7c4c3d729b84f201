"""Random models of three sizes, on the device that trains them; at toy size where it is a CPU."""

from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import MODEL_FILE, Model, write_json
from pipeline.models import loading
from tests.support.tiny import tiny_tokenizer

HAS_GPU = torch.cuda.is_available()
WIDTHS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)
# Widths of SmolLM2-135M, Llama 3.2 1B and Mistral 7B v0.3; the first two tie their output layer.
SIZES = {
    "small": (576, 1536, 30, 9, 3, 49152),
    "medium": (2048, 8192, 16, 32, 8, 128256),
    "large": (4096, 14336, 32, 32, 8, 32768),
}
TOYS = {
    "small": (64, 192, 2, 4, 2, 1024),
    "medium": (128, 512, 2, 4, 2, 2048),
    "large": (256, 896, 4, 4, 2, 1024),
}
TIED = ("small", "medium")
CONTEXT = 4096


def write_model(step: Path, size: str) -> Model:
    """A Llama with random weights in bfloat16, as a published folder `store/sft/<fingerprint>`."""
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    weights = step / "weights"
    tiny_tokenizer(weights)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(weights)
    widths = (SIZES if HAS_GPU else TOYS)[size]
    ids: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = LlamaConfig(
        **dict(zip(WIDTHS, widths, strict=True)),
        **ids,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=size in TIED,
    )
    torch.manual_seed(0)
    with loading.choose_device():  # numbers of 7 billion weights take minutes on a CPU
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    module.save_pretrained(weights)
    write_json(step / MODEL_FILE, {"weights": "weights", "tokenizer": "weights"})
    return Model(step)
