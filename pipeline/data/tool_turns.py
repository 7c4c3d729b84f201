"""Tools in messages: their schemas, a model's calls and the results, as role and content.

All stages know messages of two texts. Tools are such messages too, with two more roles whose
content is JSON: `tools` holds the schemas, and `tool_calls` the calls of the assistant's turn. So
they are in a prompt's id, in every table and in every comparison, and the tables of prompts without
tools do not change. Chat templates, servers and users' functions get OpenAI's shape from
`unpack_messages`.
"""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from pipeline.data.jsonl import CALLS, RESULT, TOOLS, find_unwritable, message_fault
from pipeline.data.readers import RowFault

Message = dict[str, str]
Answer = str | list[Message]  # a text, or the turns of an answer that calls tools
EXPECTED_CALLS = "tool_calls"  # the column with the calls that end a conversation
NOT_JSON = "tool calls are not JSON"
EXPECTED_TOOLS = (
    "'tools' is not a list of JSON schemas, each with a name."
    " Give the column another name if it holds something else"
)


# ── rows → messages ──────────────────────────────────────────────────────────────────────────────


def pack_messages(messages: list[Any]) -> list[Any]:
    """Messages in OpenAI's shape as role and content. Without tools they are returned as they are.

    Results are brought into the order of their calls, which replaces the calls' ids.
    """
    are_objects = all(isinstance(message, dict) for message in messages)
    if are_objects and any(map(_uses_tools, messages)):
        messages = list(_pack_turns(messages))
    if fault := message_fault(messages):
        raise RowFault(fault)
    return messages


def add_tools(messages: list[Message], value: Any) -> list[Message]:
    """The messages with the schemas of a column `tools`, before the first turn."""
    if not (tools := read_tools(value)):
        return messages
    if any(message["role"] == TOOLS for message in messages):
        raise RowFault("has both a column 'tools' and a message with that role")
    at = 1 if messages[0]["role"] == "system" else 0
    return [*messages[:at], {"role": TOOLS, "content": _dump(tools)}, *messages[at:]]


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Schemas in OpenAI's shape: from objects or JSON texts, or from one text that holds a list."""
    value = load_json(value, EXPECTED_TOOLS) if isinstance(value, str) and value.strip() else value
    if not value:
        return []
    tools = [_read_tool(tool) for tool in (value if isinstance(value, list) else [value])]
    if fault := find_unwritable(tools):
        raise RowFault(f"'tools' {fault}")
    return tools


def _read_tool(tool: Any) -> dict[str, Any]:
    tool = _drop_nulls(load_json(tool, EXPECTED_TOOLS) if isinstance(tool, str) else tool)
    match tool:
        case {"function": {"name": str(name)}} if name:
            return tool
        case {"name": str(name)} if name:
            return {"type": "function", "function": tool}
    raise RowFault(EXPECTED_TOOLS)


def read_calls(value: Any) -> list[dict[str, Any]]:
    """Calls `{name, arguments}`: from one or several, as objects or as a JSON text."""
    value = load_json(value, NOT_JSON) if isinstance(value, str) else value
    return [read_call(call) for call in (value if isinstance(value, list) else [value])]


def read_call(value: Any) -> dict[str, Any]:
    """A call by OpenAI, Hermes or Llama (`parameters`). Arguments may be a JSON text."""
    function = value.get("function") if isinstance(value, dict) else None
    call = function if isinstance(function, dict) else value
    if not isinstance(call, dict) or not isinstance(name := call.get("name"), str) or not name:
        raise RowFault("a tool call is not {name: text, arguments: object}")
    arguments = call.get("arguments")
    arguments = call.get("parameters") if arguments is None else arguments
    fault = f"the arguments of a call of {name} are not a JSON object"
    if isinstance(arguments, str):
        arguments = load_json(arguments, fault) if arguments.strip() else {}
    else:
        arguments = {} if arguments is None else _drop_nulls(arguments)
    if not isinstance(arguments, dict):
        raise RowFault(fault)
    return {"name": name, "arguments": arguments}


def _uses_tools(message: dict[str, Any]) -> bool:
    return message.get("role") in (TOOLS, CALLS, RESULT) or bool(message.get("tool_calls"))


def _pack_turns(messages: list[dict[str, Any]]) -> Iterator[Any]:
    ids: list[Any] = []  # of the last turn's calls
    for role, group in groupby(messages, lambda message: message.get("role")):
        if role == RESULT:
            yield from _pack_results(list(group), ids)
            ids = []
            continue
        for message in group:
            content, calls = message.get("content"), _list_calls(message)
            ids = [call.get("id") if isinstance(call, dict) else None for call in calls]
            if role == TOOLS:
                yield {"role": TOOLS, "content": _dump(read_tools(content))}
            elif role != CALLS and (content or not calls):
                yield {"role": role, "content": content}
            if calls:
                yield {"role": CALLS, "content": _dump(read_calls(calls))}


def _list_calls(message: dict[str, Any]) -> list[Any]:
    """The calls of the assistant's turn as the row has them."""
    role = message.get("role")
    if role not in ("assistant", CALLS):
        return []
    value = message.get("content" if role == CALLS else "tool_calls")
    value = load_json(value, NOT_JSON) if isinstance(value, str) else value
    if role == CALLS and not value:
        raise RowFault("a turn of tool calls has none")
    return value if isinstance(value, list) else [value] if value else []


def _pack_results(results: list[dict[str, Any]], ids: list[Any]) -> Iterator[Message]:
    """In the order of the calls whose ids they name; as they come where they name none."""
    if len(results) > len(ids):
        raise RowFault("a message of the role tool answers no call of the turn before it")
    names = [result.get("tool_call_id") for result in results]
    if all(isinstance(name, str) and name in ids for name in names):
        if len(results) < len(ids):
            raise RowFault("a tool call has no result")
        results = sorted(results, key=lambda result: ids.index(result["tool_call_id"]))
    for result in results:
        content = result.get("content")
        yield {"role": RESULT, "content": content if isinstance(content, str) else _dump(content)}


def _drop_nulls(value: Any) -> Any:
    """Without the nulls by which parquet fills up objects that have different keys."""
    if isinstance(value, dict):
        return {name: _drop_nulls(item) for name, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value


def load_json(text: str, fault: str) -> Any:
    """A JSON value; `fault` says what is wrong where the text is none."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RowFault(fault) from error
    if deep := find_unwritable(value):
        raise RowFault(f"{fault}: it {deep}")
    return value


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _dump(value: Any) -> str:
    """In the order of the keys, which a template keeps."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault(f"a tool, a call or a result is not JSON ({error})") from error


# ── messages → OpenAI's shape ────────────────────────────────────────────────────────────────────


def unpack_messages(
    messages: list[Message], encode: Callable[[Any], Any] = lambda arguments: arguments
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools in OpenAI's shape; `encode` turns a call's arguments into text.

    The n-th call has the id `call0000n`: some templates take nine letters and digits alone.
    """
    if not uses_tools(messages):
        return messages, []
    turns, tools = list[dict[str, Any]](), list[dict[str, Any]]()
    count, waiting = 0, list[dict[str, Any]]()
    for message in messages:
        role, content = message["role"], message["content"]
        if role == TOOLS:
            tools = json.loads(content)
        elif role == CALLS:
            if not turns or turns[-1]["role"] != "assistant" or "tool_calls" in turns[-1]:
                turns.append({"role": "assistant", "content": ""})
            waiting = []
            for call in json.loads(content):
                count += 1
                function = {"name": call["name"], "arguments": encode(call["arguments"])}
                waiting.append({"id": f"call{count:05d}", "type": "function", "function": function})
            turns[-1]["tool_calls"] = list(waiting)
        elif role == RESULT and waiting:
            call = waiting.pop(0)
            names = {"name": call["function"]["name"], "tool_call_id": call["id"]}
            turns.append({**message, **names})
        else:
            turns.append(dict(message))
    return turns, tools


def uses_tools(messages: list[Message]) -> bool:
    return any(message["role"] in (TOOLS, CALLS, RESULT) for message in messages)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def split_answer(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A conversation before its last turn, and that turn: a text, calls, or both."""
    roles = [message["role"] for message in messages[-2:]]
    size = 2 if roles == ["assistant", CALLS] else 1
    return messages[:-size], messages[-size:]


def is_answer(turns: list[Message]) -> bool:
    return bool(turns) and turns[-1]["role"] in ("assistant", CALLS)


def to_turns(answer: Answer) -> list[Message]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def to_text(answer: Answer) -> str:
    """All that an answer says, for comparisons; a chat template writes calls in its own form."""
    return "\n".join(message["content"] for message in to_turns(answer))


def to_answer(turns: list[Message]) -> Answer:
    """The turns of an answer; only the text where it calls no tool."""
    return turns[0]["content"] if turns[-1]["role"] == "assistant" else turns
