"""Sets of prompts as rows `prompt_id, prompt` (messages) and `columns` (the row's other fields).

Scorers read `columns`. In every shape a row may have a `system` prompt and an `id`.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import polars as pl

from pipeline.config import FileRows, PromptRows
from pipeline.data.instruction_conflicts import find_contradiction
from pipeline.data.jsonl import RESULT, advise_on_bad_rows, describe_faults, find_unwritable
from pipeline.data.prompt_checks import PromptSummary, select_tool_prompts
from pipeline.data.prompt_shapes import BY_COLUMNS, SHAPES, Messages, detect_shape
from pipeline.data.readers import BATCH, Row, RowFault, read_rows
from pipeline.data.tool_turns import add_tools
from pipeline.errors import UserError, make_printable, pluralize, suggest

PROMPT_ROW: dict[str, Any] = {
    "prompt_id": pl.String,
    "prompt": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "columns": pl.String,
    "hash": pl.String,
    "asked": pl.List(pl.String),
}


@dataclass
class LeftOutColumn:
    """A column that cannot be kept, and that no prompt needs."""

    place: str
    why: str
    rows: int = 0


@dataclass
class PromptSet:
    """Usable rows; place and fault of each other row; columns that were left out, by name."""

    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=PROMPT_ROW))
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, LeftOutColumn] = field(default_factory=dict)
    taken: tuple[str, ...] = ()  # the file's columns that the first usable row's prompt is made of


def read_prompts(source: PromptRows, knob: str, on_bad_row: str = "fail") -> PromptSet:
    """Reads by batches, so that only one of them exists as Python objects at a time."""
    found = PromptSet()
    rows = _convert_rows(source, knob, found)
    batches = iter(lambda: list(islice(rows, BATCH)), [])
    tables = [pl.DataFrame(batch, schema=PROMPT_ROW) for batch in batches]
    found.rows = pl.concat([found.rows, *tables])
    _check_rows(source, knob, on_bad_row, found.rows.height, found.bad)
    return found


def summarize_prompts(source: PromptRows, knob: str, on_bad_row: str = "fail") -> PromptSummary:
    """Refuses what `read_prompts` refuses, and keeps no row."""
    found = PromptSet()
    count, names, first = 0, set[str](), dict[str, Any]()

    def read_messages() -> Iterator[Messages]:
        nonlocal count, first
        for row in _convert_rows(source, knob, found):
            count += 1
            columns = json.loads(row["columns"])
            first = first or {"prompt": row["prompt"], "columns": columns}
            names.update(columns)
            yield row["prompt"]

    tool_prompts = select_tool_prompts(read_messages())
    _check_rows(source, knob, on_bad_row, count, found.bad)
    return PromptSummary(count, frozenset(names), first, tool_prompts, found.taken)


def _check_rows(
    source: PromptRows, knob: str, on_bad_row: str, usable: int, bad: list[tuple[str, str]]
) -> None:
    if bad and on_bad_row == "fail":
        raise UserError(_bad_rows_error(source, knob, usable, bad))
    if not usable:
        faults = f":\n{describe_faults(bad)}\n " if bad else "."
        raise UserError(
            f"{_source_name(source)}: holds no prompt{faults}"
            ' Expected rows such as {"prompt": "Who are you?"}.'
        )


def _convert_rows(source: PromptRows, knob: str, found: PromptSet) -> Iterator[Row]:
    if source.shape == "columns" and not source.columns:
        raise UserError(
            f"{knob}.shape=columns: {knob}.columns says nothing."
            " Give {prompt: …} with the file's names."
        )
    shape: str = source.shape
    ids: set[str] = set()
    for place, fault, row in read_rows(source.source, knob):
        try:
            if fault:
                raise RowFault(fault)
            row = _rename_columns(source.columns, row)
            shape = shape if shape not in BY_COLUMNS else detect_shape(row, knob)
            converted = _check_id(convert_row(shape, row), ids)
            if knob == "prompts":  # an evaluation set is used as it was published
                _check_constraints(row)
        except RowFault as error:
            found.bad.append((place, make_printable(str(error))))
            continue
        for name, why in converted.pop("left_out").items():
            found.left_out.setdefault(name, LeftOutColumn(place, why)).rows += 1
        taken = converted.pop("taken")
        found.taken = found.taken or tuple(source.columns.get(name, name) for name in taken)
        yield converted


def _check_constraints(row: Row) -> None:
    if fault := find_contradiction(row.get("instruction_id_list"), row.get("kwargs")):
        raise RowFault(f"no answer can follow its instruction_id_list: {fault}")


def _check_id(row: Row, ids: set[str]) -> Row:
    """The file's own ids are unique; an id made by hashing may repeat, for the same prompt."""
    if row.pop("named"):
        if row["prompt_id"] in ids:
            raise RowFault(f"id {row['prompt_id']!r} is on an earlier line already")
        ids.add(row["prompt_id"])
    return row


def _bad_rows_error(source: PromptRows, knob: str, usable: int, bad: list[tuple[str, str]]) -> str:
    total = pluralize(len(bad) + usable, "row")
    head = f"{_source_name(source)}: {len(bad)} of {total} cannot be used:"
    skip = None if "." in knob else f"{knob}.on_bad_row"
    read_by = f"say by {knob}.shape and {knob}.columns how to read them"
    return "\n".join([head, describe_faults(bad), advise_on_bad_rows(usable, skip, read_by)])


def _source_name(source: PromptRows) -> str:
    return source.source.path if isinstance(source.source, FileRows) else source.source.dataset


# ── one row ──────────────────────────────────────────────────────────────────────────────────────


def build_prompt_row(messages: Messages, columns: Row, row_id: Any = None) -> Row:
    """One row of the `prompts` table. Without an id, a prompt is named by its messages' hash."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "prompt_id": digest[:16] if row_id is None else str(row_id),
        "prompt": [{"role": m["role"], "content": m["content"]} for m in messages],
        "columns": json.dumps(columns, sort_keys=True, ensure_ascii=False, allow_nan=False),
        "hash": digest,
        "asked": [m["content"] for m in messages if m["role"] == "user"],
    }


def join_user_turns(messages: Messages) -> str:
    """What is compared with evaluation prompts."""
    return "\n".join(m["content"] for m in messages if m["role"] == "user")


def convert_row(shape: str, row: Row) -> Row:
    """A row of the table. `named`: whether the file gives it an id. `taken`: what is its prompt."""
    given, row = row, dict(row)
    system, row_id = row.pop("system", None), _parse_id(row.pop("id", None))
    messages = _add_system(SHAPES[shape](row), system)
    taken = [name for name in given if name not in row and name not in ("system", "id")]
    if row.get("tools"):
        messages = add_tools(messages, row.pop("tools"))
    turns = row["turns"] if shape == "turns" else None
    if fault := find_unwritable([messages, turns, row_id]):
        raise RowFault(f"its prompt or its id {fault}")
    faults = [(make_printable(name), _column_fault(name, value)) for name, value in row.items()]
    left_out = {name: why for name, why in faults if why}
    columns = {name: value for name, value in row.items() if make_printable(name) not in left_out}
    converted = build_prompt_row(messages, columns, row_id)
    return {
        **converted,
        "asked": turns or converted["asked"],
        "named": row_id is not None,
        "left_out": left_out,
        "taken": taken,
    }


def _rename_columns(names: Mapping[str, str], row: Row) -> Row:
    """`names`: ours → the file's."""
    if absent := [theirs for theirs in names.values() if theirs not in row]:
        raise RowFault(f"no column {', '.join(absent)}. {suggest(absent[0], list(row))}")
    renamed = {ours: row[theirs] for ours, theirs in names.items()}
    others = {name: value for name, value in row.items() if name not in names.values()}
    return {**others, **renamed}


def _add_system(messages: Messages, system: Any) -> Messages:
    if not isinstance(system, str | None):
        raise RowFault("'system' is not text")
    if system and messages[0]["role"] == "system":
        raise RowFault("has both 'system' and a system message")
    if messages[-1]["role"] not in ("user", RESULT):
        raise RowFault("the last message is not the user's or a tool's")
    if not any(message["role"] == "user" for message in messages):
        raise RowFault("no message is the user's")
    if messages[-1]["role"] == "user" and not messages[-1]["content"].strip():
        raise RowFault("the prompt is empty")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _parse_id(value: Any) -> Any:
    """A table with a missing id holds all ids as floats, and the missing one as NaN."""
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return None if math.isnan(value) else int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"id is {value!r}; expected a text or a whole number")
    return value


def _column_fault(name: str, value: Any) -> str | None:
    """Why a column cannot be kept as JSON; None if it can."""
    if fault := find_unwritable([name, value]):
        return fault
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        return f"is not JSON ({error})"
    except ValueError:
        return "holds NaN or an infinity, which JSON has not"
    return None
