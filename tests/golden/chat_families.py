"""Small tokenizers and chat templates in the shapes of the families that people train.

They are made anew in a second each. Each has the traits of its originals: the token that begins a
text, whether the tokenizer adds it to plain text, what ends a turn, which roles the template takes,
and whether spaces are bytes or "▁" (SentencePiece).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artifacts import Model
from tests.support.tiny import tiny_llama

TEXT = (
    "Write three short sentences about the quiet river and an old lantern. "
    "Mention the word garden, do not use the letter z, end with a question mark? "
    "Use at most 20 words! 1 2 3 4 5 6 7 8 9 0: ; - ' \n"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML_SMOL = (
    "{% if messages[0].role != 'system' %}"
    "{{ bos_token + 'system\nYou answer briefly.' + eos_token + '\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}"
)
CHATML_QWEN = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are of help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA_2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 is even) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 is even) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}"
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{% if m.role == 'user' %}[INST] "
    "{% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OLMO = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    template: str
    bos: str | None
    eos: str
    pad: str
    other_specials: tuple[str, ...] = ()
    adds_bos: bool = False  # to plain text, when special tokens are asked for
    stops: tuple[str, ...] = ()  # of generation_config.json; empty: eos alone
    sentencepiece: str | None = None  # transformers' tokenizer class; None: byte-level
    system: bool = True  # whether the template takes a system message
    kwargs: dict[str, Any] = field(default_factory=dict)  # that the template knows


FAMILIES = {
    "smollm2": Family(
        CHATML_SMOL, "<|im_start|>", "<|im_end|>", "<|im_end|>", ("<|endoftext|>",)
    ),
    "qwen": Family(
        CHATML_QWEN, None, "<|im_end|>", "<|endoftext|>",
        ("<|im_start|>", "<think>", "</think>"),
        stops=("<|im_end|>", "<|endoftext|>"), kwargs={"enable_thinking": False},
    ),
    "llama2": Family(
        LLAMA_2, "<s>", "</s>", "<unk>", adds_bos=True, sentencepiece="LlamaTokenizer"
    ),
    "llama3": Family(
        LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
        adds_bos=True, stops=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "gemma": Family(
        GEMMA, "<bos>", "<eos>", "<pad>", ("<start_of_turn>", "<end_of_turn>"), adds_bos=True,
        stops=("<eos>", "<end_of_turn>"), sentencepiece="GemmaTokenizer", system=False,
    ),
    "mistral": Family(
        MISTRAL, "<s>", "</s>", "<unk>", ("[INST]", "[/INST]"),
        adds_bos=True, sentencepiece="LlamaTokenizer",
    ),
    "phi": Family(
        PHI, "<s>", "<|endoftext|>", "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        stops=("<|endoftext|>", "<|end|>"), sentencepiece="LlamaTokenizer",
    ),
    # Its tokenizer adds a BOS that its template has not: TinyLlama's chats are like it.
    "zephyr": Family(ZEPHYR, "<s>", "</s>", "</s>", adds_bos=True, sentencepiece="LlamaTokenizer"),
    "olmo": Family(
        OLMO, "<|endoftext|>", "<|endoftext|>", "<|pad|>",
        ("<|system|>", "<|user|>", "<|assistant|>"),
    ),
}  # fmt: skip


def write_tokenizer(family: Family, folder: Path) -> Any:
    build = _build_sentencepiece if family.sentencepiece else _build_byte_level
    tokenizer = build(family)
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_checkpoint(family: Family, folder: Path, **shape: Any) -> Path:
    """As on the hub: a random Llama with this tokenizer, and the stops of its generation config."""
    tokenizer = write_tokenizer(family, folder)
    tiny_llama(folder, **{"context": 512, **shape})
    file = folder / "generation_config.json"
    stops = tokenizer.convert_tokens_to_ids(list(family.stops or (family.eos,)))
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": stops}))
    return folder


def write_model(family: Family, step: Path, **shape: Any) -> Model:
    """`step` plays a published folder `store/sft/<fingerprint>`."""
    write_checkpoint(family, step / "weights", **shape)
    (step / "model.json").write_text(json.dumps({"weights": "weights", "tokenizer": "weights"}))
    return Model(step)


def _list_specials(family: Family) -> list[str]:
    tokens = (family.pad, family.bos, family.eos, *family.other_specials, *family.stops)
    return list(dict.fromkeys(token for token in tokens if token))


def _special_tokens(family: Family) -> dict[str, Any]:
    return {
        "additional_special_tokens": list(family.other_specials),
        "bos_token": family.bos,
        "eos_token": family.eos,
        "pad_token": family.pad,
    }


def _build_byte_level(family: Family) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=_list_specials(family),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 4, trainer)
    if family.adds_bos and family.bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, bpe.token_to_id(family.bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **_special_tokens(family))


def _build_sentencepiece(family: Family) -> Any:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, trainers

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = _list_specials(family)
    first = [token for token in ("<pad>", "<s>", "</s>", "<bos>", "<eos>") if token in specials]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<unk>", *first, *BYTES], show_progress=False
    )
    bpe.train_from_iterator([word for line in [TEXT] * 4 for word in line.split(" ")], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [
        tuple(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]
    ]
    tokenizer_class = getattr(transformers, family.sentencepiece or "")
    return tokenizer_class(
        vocab=model["vocab"],
        merges=merges,
        unk_token="<unk>",
        add_bos_token=family.adds_bos,
        **_special_tokens(family),
    )
