"""JSON lines as people really write them: every broken line is named with its number and its fault."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, make_printable, pluralize

LONGEST = 1 << 20  # bytes in a line; a longer one is a file without line ends, not a prompt
SHOWN = 10
DEEPEST = 64  # lists and objects within one another; Python itself follows about a thousand
ROLES = "system", "user", "assistant"

Check = Callable[[dict[str, Any]], str | None]  # the fault of a row, or None


@dataclass
class Lines:
    """The good rows of a file and what was wrong with the others."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def read_jsonl(path: Path, check: Check, on_bad_row: str, knob: str) -> Lines:
    """Rows that are JSON objects and pass `check`; `on_bad_row: fail` refuses the file with its first faults."""
    lines = Lines()
    for number, fault, row in each_line(path):
        fault = fault or check(row)
        if fault:
            lines.bad.append((number, make_printable(fault)))
        else:
            lines.rows.append(row)
    if lines.bad and on_bad_row == "fail":
        first = [f"  line {number}: {fault}" for number, fault in lines.bad[:SHOWN]]
        more = [f"  … and {len(lines.bad) - SHOWN} more"] if len(lines.bad) > SHOWN else []
        head = f"{path}: {len(lines.bad)} of {pluralize(len(lines.bad) + len(lines.rows), 'line')} cannot be used:"
        advice = f"  Mend them, or leave them out and count them with {knob}=skip."
        raise UserError("\n".join([head, *first, *more, advice]))
    return lines


def each_line(path: Path) -> Iterator[tuple[int, str | None, dict[str, Any]]]:
    """Every line that is not blank, one at a time: its number, its fault or None, its object."""
    for number, data in _numbered(path):
        yield number, *_parse(data, number)


def message_fault(messages: list[Any]) -> str | None:
    """What is wrong with a list of chat messages, or None."""
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            return f"a message is not {{role: {'|'.join(ROLES)}, content: text}}"
    return None


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; of one that is too long only its beginning is kept in memory."""
    try:
        file = path.expanduser().open("rb")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a JSONL file."
        ) from error
    with file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            rest = line
            while len(rest) == LONGEST + 1 and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST + 1)
            if line.strip():
                yield number, line


def _parse(data: bytes, number: int) -> tuple[str | None, dict[str, Any]]:
    if len(data) > LONGEST:
        return f"longer than {LONGEST} bytes", {}
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


def unwritable(value: Any) -> str | None:
    """Characters that no parquet file and no tokenizer takes, and nesting that no reader follows."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            return f"is nested more than {DEEPEST} deep"
        if isinstance(item, str) and (fault := _unwritable_text(item)):
            return fault
        inside = (
            [*item, *item.values()]
            if isinstance(item, dict)
            else item
            if isinstance(item, list)
            else []
        )
        waiting += [(one, depth + 1) for one in inside]
    return None


def _unwritable_text(text: str) -> str | None:
    if "\0" in text:
        return "holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    return None
