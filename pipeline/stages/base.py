"""base: the model before SFT (a checkpoint, a GGUF file or an untrained model), or a baseline."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import MODEL_FILE, Model, write_json
from pipeline.config import (
    AnswersFile,
    Checkpoint,
    GgufCheckpoint,
    PlaygroundDemonstrations,
    ServedModel,
    TinyBase,
)
from pipeline.data import synthetic
from pipeline.errors import UserError
from pipeline.models.checkpoint import import_checkpoint, save_weights
from pipeline.models.gguf import import_gguf

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOS, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [PAD, BOS, END, *ROLES]
BYTES = 256
WEIGHTS = shutil.ignore_patterns(
    "*.safetensors*", "*.bin*", "config.json", "generation_config.json"
)
TEXTS = 3000  # conversations to train the tokenizer on: more do not change its merges

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def run(
    cfg: Checkpoint | GgufCheckpoint | TinyBase | ServedModel | AnswersFile,
    out: Path,
    *,
    like: Model | None = None,
) -> Model:
    if isinstance(cfg, Checkpoint):
        return import_checkpoint(cfg, out)
    if isinstance(cfg, GgufCheckpoint):
        return import_gguf(cfg, out)
    if isinstance(cfg, ServedModel | AnswersFile):
        assert like
        name = cfg.model if isinstance(cfg, ServedModel) else Path(cfg.file).name
        return make_text_model(name, like, out)
    _check_sizes(cfg)
    tokenizer = make_tiny_tokenizer(cfg)
    return save_weights(make_tiny_model(cfg, tokenizer), tokenizer, out)


def make_text_model(name: str, like: Model, out: Path) -> Model:
    """A name, and the model whose tokenizer measures its prompts and answers."""
    shutil.copytree(like.tokenizer, out / "tokenizer", dirs_exist_ok=True, ignore=WEIGHTS)
    measure = f"{like.path.parent.name}/{like.path.name}"
    write_json(out / MODEL_FILE, {"served": name, "base": measure, "tokenizer": "tokenizer"})
    return Model(out)


def make_tiny_tokenizer(cfg: TinyBase) -> "PreTrainedTokenizerFast":
    """Byte-level BPE, which knows every text. Only the template writes BOS: each text has one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(_tokenizer_texts(cfg.seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=cfg.context,
        clean_up_tokenization_spaces=False,
    )


def make_tiny_model(cfg: TinyBase, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.hidden,
        intermediate_size=cfg.hidden * 8 // 3,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.heads,
        max_position_embeddings=cfg.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return LlamaForCausalLM(config)


def _tokenizer_texts(seed: int) -> Iterator[str]:
    cfg = PlaygroundDemonstrations(
        kind="playground", rows=TEXTS, constraints=3, obeyed=0.5, seed=seed
    )
    for row in synthetic.generate_demonstrations(cfg):
        yield from (message["content"] for message in row["messages"])


def _check_sizes(cfg: TinyBase) -> None:
    if cfg.vocabulary < BYTES + len(SPECIAL):
        raise UserError(
            f"base.vocabulary={cfg.vocabulary}: {BYTES} bytes and {len(SPECIAL)} special tokens"
            " need a place each.\n"
            f"  Give at least {BYTES + len(SPECIAL)}."
        )
    if cfg.hidden % (2 * cfg.heads):
        raise UserError(
            f"base.hidden={cfg.hidden}, base.heads={cfg.heads}: a head's size has to be an even"
            " integer.\n"
            "  Give hidden as a multiple of 2 × heads; vLLM on a CPU needs heads of 32, 64 or 128."
        )
