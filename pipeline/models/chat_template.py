"""A checkpoint's chat template, rendered in one place. Its ids are the contract of all stages."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.data.tool_turns import unpack_messages, uses_tools

Turns = list[dict[str, Any]]


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

    def render(turns: Turns, tools: Turns) -> str:
        given = {**options, "tools": tools} if tools else options
        text: str = tokenizer.apply_chat_template(turns, **given)
        return text

    try:
        return render_with_tools(messages, render)
    except Exception as error:
        raise explain(error) from error


class IgnoredTools(Exception):
    """What of a conversation with tools a chat template leaves out."""


def render_with_tools(messages: list[dict[str, str]], render: Callable[[Turns, Turns], str]) -> str:
    """The text, which has to hold every tool, call and result.

    Many templates know no tools: they would leave them out and say nothing.
    """
    turns, tools = unpack_messages(messages)
    text = render(turns, tools)
    if uses_tools(messages) and (part := _find_ignored(turns, tools, text, render)):
        raise IgnoredTools(f"it leaves out {part}")
    return text


def _find_ignored(
    turns: Turns, tools: Turns, text: str, render: Callable[[Turns, Turns], str]
) -> str | None:
    for tool in tools:
        if (name := tool["function"]["name"]) not in text:
            return f"the tool {name}"
    for turn in turns:
        for call in turn.get("tool_calls", []):
            if (name := call["function"]["name"]) not in text:
                return f"a call of {name}"
    for at, turn in enumerate(turns):
        if turn["role"] != "tool" or any(form in text for form in _spell(turn["content"])):
            continue
        # It may be written in another form: then other words make another text.
        others = [*turns[:at], {**turn, "content": "other words"}, *turns[at + 1 :]]
        if render(others, tools) == text:
            return "the result of a tool (role tool)"
    return None


def _spell(content: str) -> Iterator[str]:
    """As templates write a result: its text, trimmed or as JSON."""
    yield content.strip()
    yield json.dumps(content)[1:-1]
    yield json.dumps(content, ensure_ascii=False)[1:-1]


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered text, whose special tokens the template has written."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
