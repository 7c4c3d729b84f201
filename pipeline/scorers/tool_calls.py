"""The tool calls of an answer against the expected ones: 1 where they are the same, else 0.

Read are Qwen's and Hermes' `<tool_call>{…}</tool_call>`, Mistral's `[TOOL_CALLS]`, Llama's
`{"name": …, "parameters": …}` and plain JSON: one call, a list, or several separated by semicolons.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.readers import RowFault
from pipeline.data.tool_turns import load_json, read_call, read_calls
from pipeline.scorers import Answer, Score
from pipeline.text import strip_reasoning

MARKED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
MARK = re.compile(r"</?tool_call>")
# What may come before the JSON of calls: the special tokens are often left out of the text.
PREFIX = re.compile(r"^(\[TOOL_CALLS\]|<\|python_tag\|>)\s*")
FENCED = re.compile(r"```\w*\n(.*)\n\s*```", re.DOTALL)
Call = dict[str, Any]


class ToolCalls:
    def __init__(self, column: str):
        self.column = column

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        for answer in answers:
            try:
                expected = read_calls(answer.columns[self.column])
            except (KeyError, RowFault) as error:
                detail = f"the column {self.column} holds no calls: {error}"
                yield Score(answer.sample_id, None, detail=detail)
                continue
            fault = find_difference(expected, answer.completion)
            yield Score(answer.sample_id, float(fault is None), detail=fault or "")

    def close(self) -> None:
        """It holds nothing open."""


def find_difference(expected: list[Call], completion: str) -> str | None:
    """What is wrong with the calls of an answer, if something is. Their order is free."""
    try:
        calls = parse_calls(completion)
    except RowFault as fault:
        return f"malformed: {fault}"
    if len(calls) != len(expected):
        return f"it makes {len(calls)} of {len(expected)} expected calls"
    wanted, made = (Counter(map(_to_key, each)) for each in (expected, calls))
    if wanted == made:
        return None
    names, made_names = (Counter(call["name"] for call in each) for each in (expected, calls))
    if missing := names - made_names:
        return f"it does not call {min(missing)}"
    return f"it calls {min(wanted - made)[0]} with other arguments"


def parse_calls(completion: str) -> list[Call]:
    """The calls of an answer; none where it is text. Malformed ones raise."""
    text = strip_reasoning(completion)
    if MARK.search(text):
        if MARK.search(MARKED.sub("", text)):
            raise RowFault("a <tool_call> is not closed, or not opened")
        return [read_call(load_json(part, "a call is not JSON")) for part in MARKED.findall(text)]
    bare = PREFIX.sub("", text)
    if fenced := FENCED.fullmatch(bare):
        bare = fenced[1].strip()
    is_call = PREFIX.match(text) or (bare.startswith(("{", "[")) and '"name"' in bare)
    if not is_call:
        return []
    return [read_call(call) for call in _read_values(bare)]


def _read_values(text: str) -> list[Any]:
    """A JSON object, a list, or several objects separated by semicolons or white space."""
    decoder, values, at = json.JSONDecoder(), list[Any](), 0
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise RowFault("calls are not JSON") from error
        value = load_json(text[at:end], "calls are not JSON")
        values += value if isinstance(value, list) else [value]
        at = len(text) - len(text[end:].lstrip("; \n\r\t"))
    return values


def _to_key(call: Call) -> tuple[str, str]:
    """Equal for equal calls: whatever the order of keys, `1` and `1.0`, a null and no argument."""
    arguments = json.dumps(_normalize(call["arguments"]), sort_keys=True)
    return call["name"], arguments


def _normalize(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normalize(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_normalize(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
