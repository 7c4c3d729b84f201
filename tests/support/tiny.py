"""Models made from nothing in a second: a BPE tokenizer with a chat template and a random Llama, as
an artifact."""

import json
from pathlib import Path

from pipeline.artifacts import Model

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = (
    "name three short facts about the quiet river and the old lantern in one sentence without"
    " the letter z "
    ". , : ! 1 2 3"
)


def tiny_tokenizer(folder: Path, template: str = CHAT, vocabulary: int = 320) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|end|>",
        additional_special_tokens=MARKS[3:],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def tiny_llama(
    folder: Path,
    *,
    hidden: int = 32,
    layers: int = 2,
    context: int = 256,
    spread: float = 0.2,
    seed: int = 0,
    kind: str = "llama",
    **config: object,
) -> None:
    """Weights so large that the next token is no coin toss: greedy decoding has no near ties, and
    some answers end."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(seed)
    shape = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=context,
        initializer_range=spread,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)


def tiny_model(
    step: Path, *, template: str = CHAT, vocabulary: int = 320, **shape: object
) -> Model:
    """`step` plays a published folder `store/sft/<fingerprint>`."""
    tiny_tokenizer(step / "weights", template, vocabulary)
    tiny_llama(step / "weights", **shape)  # type: ignore[arg-type]
    (step / "model.json").write_text(json.dumps({"weights": "weights", "tokenizer": "weights"}))
    return Model(step)


def tiny_classifier(
    folder: Path, kind: str = "llama", labels: int = 1, seed: int = 0, **config: object
) -> None:
    """A sequence classifier with weights so large that its scores differ: a Llama that reads chats,
    or an encoder."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

    (tiny_tokenizer if kind == "llama" else tiny_pair_tokenizer)(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
    }
    known = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "initializer_range": 0.2}
    marks = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    torch.manual_seed(seed)
    made = AutoConfig.for_model(kind, **shape, **known, **marks, num_labels=labels, **config)
    AutoModelForSequenceClassification.from_config(made).save_pretrained(folder)


def tiny_pair_tokenizer(folder: Path) -> None:
    """`[CLS] question [SEP] answer [SEP]`, with segments."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tiny_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    bpe = tokenizer.backend_tokenizer
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>",
        pair="<s> $A <|end|> $B:1 <|end|>:1",
        special_tokens=[("<s>", 1), ("<|end|>", 2)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        cls_token="<s>",
        sep_token="<|end|>",
        pad_token="<pad>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
