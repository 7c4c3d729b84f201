"""BOS in a rendered chat template: what the template writes is right, unless it is doubled.

ChatML writes `<|im_start|>` at each turn, Llama-2 `<s>` at each question, Zephyr none: all are right.
Two at the start are: the template's, and another of the template or of a tokenizer that adds one.
"""

from collections.abc import Sequence
from typing import Any


def adds_bos(tokenizer: Any) -> bool:
    """Whether it puts BOS before plain text: then its model was trained with one."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def is_doubled(ids: Sequence[int], bos: int | None) -> bool:
    return bos is not None and list(ids[:2]) == [bos, bos]


def holds_bos(tokenizer: Any, text: str) -> bool:
    """Whether BOS is spelled out in a text: its tokens would begin a turn, or a text, that the template did not."""
    bos = tokenizer.bos_token
    if bos is None or bos not in text:  # most texts are spared a tokenisation
        return False
    return tokenizer.bos_token_id in tokenizer(text, add_special_tokens=False)["input_ids"]


# The template is in one of two places.
REMEDY = (
    "Copy the chat template (chat_template.jinja, or chat_template in tokenizer_config.json) to a"
    " file, remove one BOS from its start, and give template.chat_template=FILE."
)
