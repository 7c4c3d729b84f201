"""The shapes in which people have prompts: a row's own columns → messages. What a shape takes is gone from the row.

Of a conversation the prompt is everything up to the last turn of the user; an answer after it becomes the column
`answer`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.data.jsonl import message_fault
from pipeline.data.readers import Fault, Row

Messages = list[dict[str, str]]


def shape_of(row: Row, knob: str) -> str:
    """By the first row's columns alone."""
    if shape := next((shape for name, shape in KNOWN_BY.items() if name in row), None):
        return shape
    raise Fault(
        f"no field 'prompt' (it has: {', '.join(sorted(row)) or 'none'}) nor what tells another shape. Give"
        f" {knob}.columns={{prompt: …}} with this file's own name for it"
    )


def _prompt(row: Row) -> Messages:
    return _asked(_needed(row, "prompt"), "prompt")


def _question(row: Row) -> Messages:
    return _asked(_needed(row, "question"), "question")


def _conversation(row: Row) -> Messages:
    return _up_to_the_user(_messages(_needed(row, "messages"), "messages"), row)


def _sharegpt(row: Row) -> Messages:
    turns = _needed(row, "conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Fault("'conversations' is not a list of {from, value}")
    if odd := {str(turn.get("from")) for turn in turns} - SPEAKERS.keys():
        raise Fault(f"a turn is from {', '.join(sorted(odd))}. Known: {', '.join(SPEAKERS)}")
    messages = [{"role": SPEAKERS[turn["from"]], "content": turn.get("value")} for turn in turns]
    return _up_to_the_user(_messages(messages, "conversations"), row)


def _alpaca(row: Row) -> Messages:
    """Self-Instruct keeps the input in a list of instances; of several each would be a prompt, and a row is one."""
    instruction, given = _needed(row, "instruction"), row.pop("input", None)
    if (instances := row.get("instances")) and isinstance(instances, list):
        if len(instances) > 1 or not isinstance(instances[0], dict):
            raise Fault(
                f"'instances' holds {len(instances)}; write one row for each, with instruction and input"
            )
        given = given or instances[0].get("input")
    if not isinstance(instruction, str) or not isinstance(given, str | None):
        raise Fault("instruction and input are not both text")
    return _asked(
        f"{instruction}\n\n{given}" if given and given.strip() else instruction, "instruction"
    )


def _turns(row: Row) -> Messages:
    """The first question; the others stay in `turns`, and the fence knows them all."""
    turns = row["turns"] if row.get("turns") else None
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise Fault("'turns' is not a list of texts")
    return _asked(turns[0], "turns")


BY_COLUMNS = "auto", "columns"
SHAPES: Mapping[str, Callable[[Row], Messages]] = {
    "prompt": _prompt,
    "messages": _conversation,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "turns": _turns,
    "question": _question,
}
# The column that tells a shape, the surest first: many a set carries its prompt twice.
KNOWN_BY = {
    "prompt": "prompt",
    "messages": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "turns": "turns",
    "question": "question",
}
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip


def _needed(row: Row, name: str) -> Any:
    if name not in row:
        raise Fault(f"no field {name!r} (it has: {', '.join(sorted(row)) or 'none'})")
    return row.pop(name)


def _asked(value: Any, name: str) -> Messages:
    return (
        [{"role": "user", "content": value}] if isinstance(value, str) else _messages(value, name)
    )


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise Fault(f"'{name}' is neither text nor a list of messages")
    if fault := message_fault(value):
        raise Fault(fault)
    return value


def _up_to_the_user(messages: Messages, row: Row) -> Messages:
    """An answer after the user's last turn is no part of the prompt."""
    if messages[-1]["role"] != "assistant":
        return messages
    row.setdefault("answer", messages[-1]["content"])
    return messages[:-1] or messages
