"""BOS in a rendered chat template: what the template writes is right, unless BOS is doubled.

ChatML writes `<|im_start|>` at each turn, Llama-2 `<s>` at each question, Zephyr none: all right.
Two BOS at the start are: the second comes from the template, or from a tokenizer that adds one.
"""

from collections.abc import Sequence
from typing import Any


def adds_bos(tokenizer: Any) -> bool:
    """Whether it puts BOS before plain text, which means that its model was trained with one."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def starts_with_two_bos(ids: Sequence[int], bos: int | None) -> bool:
    return bos is not None and list(ids[:2]) == [bos, bos]


def contains_bos(tokenizer: Any, text: str) -> bool:
    """Whether a text spells out BOS, which would begin a turn or a text within it."""
    bos = tokenizer.bos_token
    if bos is None or bos not in text:  # saves most texts a tokenisation
        return False
    return tokenizer.bos_token_id in tokenizer(text, add_special_tokens=False)["input_ids"]


# The template may be in either of two files.
REMEDY = (
    "Copy the chat template (chat_template.jinja, or chat_template in tokenizer_config.json)"
    " to a file, remove one BOS from its start, and give template.chat_template=FILE."
)
