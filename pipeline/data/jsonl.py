"""JSON lines, read tolerantly: every broken line is reported with its number and its fault."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, describe_place, make_printable, pluralize

MAX_LINE = 1 << 20  # bytes; a longer line is a file without line ends, not a prompt
SHOWN = 10  # faults
MAX_DEPTH = 64  # of nested lists and objects; Python itself follows about a thousand
RESULT, TOOLS, CALLS = "tool", "tools", "tool_calls"  # see tool_turns
ROLES = ("system", "user", "assistant", RESULT)

Check = Callable[[dict[str, Any]], str | None]  # the fault of a row, or None


@dataclass
class Lines:
    """The usable rows of a file, and the number and fault of each other row."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def read_jsonl(path: Path, check: Check, on_bad_row: str, knob: str) -> Lines:
    """Rows that are JSON objects and pass `check`.

    `on_bad_row: fail` refuses the file, with its first faults.
    """
    lines = Lines()
    for number, fault, row in read_lines(path):
        fault = fault or check(row)
        if fault:
            lines.bad.append((number, make_printable(fault)))
        else:
            lines.rows.append(row)
    if lines.bad and on_bad_row == "fail":
        total = pluralize(len(lines.bad) + len(lines.rows), "line")
        head = f"{path}: {len(lines.bad)} of {total} cannot be used:"
        faults = describe_faults((f"line {number}", fault) for number, fault in lines.bad)
        advice = advise_on_bad_rows(len(lines.rows), knob, "give another file")
        raise UserError("\n".join([head, faults, advice]))
    return lines


def read_lines(path: Path) -> Iterator[tuple[int, str | None, dict[str, Any]]]:
    """Every line that is not blank: its number, its fault or None, its object."""
    for number, data in _read_numbered(path):
        yield number, *_parse_line(data, number)


def message_fault(messages: list[Any]) -> str | None:
    """What is wrong with a list of chat messages, or None."""
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in (*ROLES, TOOLS, CALLS)
            or not isinstance(message.get("content"), str)
        ):
            return f"a message is not {{role: {'|'.join(ROLES)}, content: text}}"
    return None


def describe_faults(bad: Iterable[tuple[str, str]]) -> str:
    """A line for each of the first faults: where it is, and in how many other places."""
    found: dict[str, list[str]] = {}
    for place, fault in bad:
        found.setdefault(fault, []).append(place)
    lines = []
    for fault, (first, *others) in islice(found.items(), SHOWN):
        where = f"{first} and {len(others)} more" if others else first
        lines.append(f"  {where}: {fault}")
    if hidden := len(found) - len(lines):
        lines.append(f"  … and {pluralize(hidden, 'other fault')}")
    return "\n".join(lines)


def advise_on_bad_rows(usable: int, skip: str | None, otherwise: str) -> str:
    """`skip`: the knob that leaves bad rows out, where there is one.

    `otherwise`: what to do besides fixing them where no row can be used.
    """
    if not usable:
        return f"  That is every row: fix them, or {otherwise}."
    others = f", or leave them out and count them with {skip}=skip" if skip else ""
    return f"  Fix them{others}."


def _read_numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers. Of a line that is too long only the beginning is kept in memory."""
    place = path.expanduser()
    if place.is_fifo():  # opening it would wait for a writer
        raise UserError(f"{path}: a pipe, not a file. Give the path of a JSONL file.")
    try:
        file = place.open("rb")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}){describe_place(path)}."
            " Give the path of a JSONL file."
        ) from error
    with file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            rest = line
            while len(rest) == MAX_LINE + 1 and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE + 1)
            if line.strip():
                yield number, line


def _parse_line(data: bytes, number: int) -> tuple[str | None, dict[str, Any]]:
    if len(data) > MAX_LINE:
        return f"longer than {MAX_LINE} bytes", {}
    if number == 1 and data.startswith(b"\xef\xbb\xbf"):
        return "starts with a byte order mark; save the file as UTF-8 without one", {}
    try:
        row = json.loads(data)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}", {}
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})", {}
    if not isinstance(row, dict):
        return f"a JSON {type(row).__name__}, expected an object", {}
    return None, row


def find_unwritable(value: Any) -> str | None:
    """The fault of a value that parquet files or tokenizers do not take, or None.

    Checks the characters, and nesting that readers do not follow.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} deep"
        if isinstance(item, str) and (fault := _find_unwritable_character(item)):
            return fault
        if isinstance(item, dict):
            waiting += [(inner, depth + 1) for inner in (*item, *item.values())]
        elif isinstance(item, list):
            waiting += [(inner, depth + 1) for inner in item]
    return None


def _find_unwritable_character(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not a character"
    return None
