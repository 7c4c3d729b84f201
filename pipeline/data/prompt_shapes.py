"""Shapes of prompt files: the columns of a row → messages. A shape removes what it reads.

The prompt of a conversation ends with the user's last turn or a tool's result. An answer after it
becomes the column `answer`, and the tool calls in that answer the column `tool_calls`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.data.jsonl import CALLS, RESULT
from pipeline.data.readers import Row, RowFault
from pipeline.data.tool_turns import (
    EXPECTED_CALLS,
    is_answer,
    pack_messages,
    read_calls,
    split_answer,
)

Messages = list[dict[str, str]]


def detect_shape(row: Row, knob: str) -> str:
    """By the first row's columns alone."""
    if shape := next((shape for name, shape in SHAPE_COLUMNS.items() if name in row), None):
        return shape
    raise RowFault(
        f"no field 'prompt' (it has: {', '.join(sorted(row)) or 'none'}) nor a column of another"
        f" shape. Give {knob}.columns={{prompt: …}} with this file's name for it"
    )


def _read_prompt(row: Row) -> Messages:
    return _to_messages(_require(row, "prompt"), "prompt")


def _read_question(row: Row) -> Messages:
    return _to_messages(_require(row, "question"), "question")


def _read_conversation(row: Row) -> Messages:
    return _cut_answer(_check_messages(_require(row, "messages"), "messages"), row)


def _read_sharegpt(row: Row) -> Messages:
    messages = convert_turns(_require(row, "conversations"), "conversations")
    return _cut_answer(_check_messages(messages, "conversations"), row)


def convert_turns(turns: Any, name: str) -> list[dict[str, Any]]:
    """sharegpt's {from, value} as messages, whose contents are still to be checked."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowFault(f"{name!r} is not a list of {{from, value}}")
    if odd := {str(turn.get("from")) for turn in turns} - SPEAKERS.keys():
        raise RowFault(f"a turn is from {', '.join(sorted(odd))}. Known: {', '.join(SPEAKERS)}")
    return [{"role": SPEAKERS[turn["from"]], "content": turn.get("value")} for turn in turns]


def _read_alpaca(row: Row) -> Messages:
    """Self-Instruct has the input in a list of instances; several make more than one prompt."""
    instruction, context = _require(row, "instruction"), row.pop("input", None)
    if (instances := row.get("instances")) and isinstance(instances, list):
        if len(instances) > 1 or not isinstance(instances[0], dict):
            raise RowFault(
                f"'instances' holds {len(instances)};"
                " write one row for each, with instruction and input"
            )
        context = context or instances[0].get("input")
    if not isinstance(instruction, str) or not isinstance(context, str | None):
        raise RowFault("instruction and input are not both text")
    has_context = context and context.strip()
    return _to_messages(
        f"{instruction}\n\n{context}" if has_context else instruction, "instruction"
    )


def _read_turns(row: Row) -> Messages:
    """The first question. The others stay in `turns`; decontamination compares all of them."""
    turns = row["turns"] if row.get("turns") else None
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise RowFault("'turns' is not a list of texts")
    return _to_messages(turns[0], "turns")


def _read_harmbench(row: Row) -> Messages:
    """A contextual behaviour is asked after its context, as HarmBench does."""
    behaviour, context = _require(row, "Behavior"), row.get("ContextString")
    if not isinstance(behaviour, str) or not isinstance(context, str | None):
        raise RowFault("Behavior and ContextString are not both text")
    return _to_messages(f"{context}\n\n---\n\n{behaviour}" if context else behaviour, "Behavior")


def _read_wildjailbreak(row: Row) -> Messages:
    """The adversarial request, or the plain one where the row has no other."""
    adversarial, vanilla = _require(row, "adversarial"), row.get("vanilla")
    return _to_messages(adversarial or vanilla, "adversarial")


BY_COLUMNS = "auto", "columns"
SHAPES: Mapping[str, Callable[[Row], Messages]] = {
    "prompt": _read_prompt,
    "messages": _read_conversation,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "turns": _read_turns,
    "question": _read_question,
    "harmbench": _read_harmbench,
    "wildjailbreak": _read_wildjailbreak,
}
# The column that identifies a shape, the surest first: many files hold their prompt twice.
SHAPE_COLUMNS = {
    "prompt": "prompt",
    "messages": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "turns": "turns",
    "question": "question",
    "Behavior": "harmbench",
    "adversarial": "wildjailbreak",
}
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "chatgpt": "assistant", "assistant": "assistant", "bing": "assistant", "bard": "assistant",
    "function_call": CALLS, "observation": RESULT, "tool": RESULT,
}  # fmt: skip


def _require(row: Row, name: str) -> Any:
    if name not in row:
        raise RowFault(f"no field {name!r} (it has: {', '.join(sorted(row)) or 'none'})")
    return row.pop(name)


def _to_messages(value: Any, name: str) -> Messages:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return _check_messages(value, name)


def _check_messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowFault(f"'{name}' is neither text nor a list of messages")
    return pack_messages(value)


def _cut_answer(messages: Messages, row: Row) -> Messages:
    """An answer after the last question or result is not a part of the prompt."""
    prompt, answer = split_answer(messages)
    if not is_answer(answer):
        return messages
    if answer[0]["role"] == "assistant":
        row.setdefault("answer", answer[0]["content"])
    if answer[-1]["role"] == CALLS:
        row.setdefault(EXPECTED_CALLS, read_calls(answer[-1]["content"]))
    return prompt or messages
