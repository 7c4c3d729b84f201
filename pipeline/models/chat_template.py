"""A checkpoint's chat template, rendered in one place. Its ids are the contract of all stages."""

from collections.abc import Callable, Mapping
from typing import Any


def render_template(
    tokenizer: Any,
    messages: list[dict[str, str]],
    kwargs: Mapping[str, Any],
    explain: Callable[[Exception], Exception],
    generation: bool = True,
) -> str:
    """The text of a conversation; with `generation` up to the start of the next answer.

    `explain` makes the error where the template refuses these messages: it is the checkpoint's code
    and may raise anything.
    """
    options = {"tokenize": False, "add_generation_prompt": generation, **kwargs}
    try:
        text: str = tokenizer.apply_chat_template(messages, **options)
    except Exception as error:
        raise explain(error) from error
    return text


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered text, whose special tokens the template has written."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
