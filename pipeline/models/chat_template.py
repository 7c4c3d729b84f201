"""A checkpoint's chat template, rendered in one place. Its ids are the contract of all stages."""

from collections.abc import Callable, Mapping
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
    # Templates write calls and results in many forms. What counts is that another text comes out
    # where the functions have other names, or the result other words.
    for at, turn in enumerate(turns):
        if calls := turn.get("tool_calls"):
            other = {**turn, "tool_calls": [_rename(call) for call in calls]}
            part = "the calls of a turn (tool_calls)"
        elif turn["role"] == "tool":
            other, part = {**turn, "content": "other words"}, "the result of a tool (role tool)"
        else:
            continue
        if render([*turns[:at], other, *turns[at + 1 :]], tools) == text:
            return part
    return None


def _rename(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "name": "other_function"}}


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """The ids of a rendered text, whose special tokens the template has written."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
