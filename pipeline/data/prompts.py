"""Sets of prompts as rows `prompt_id, prompt` (messages) and `columns` (what a row's shape leaves over, for scorers).

A row may have a `system` prompt and an `id` in every shape.
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
from pipeline.data.jsonl import SHOWN, unwritable
from pipeline.data.prompt_checks import Summary
from pipeline.data.prompt_shapes import BY_COLUMNS, SHAPES, Messages, shape_of
from pipeline.data.readers import BATCH, Fault, Row, each_row
from pipeline.errors import UserError, make_printable, pluralize, suggest

ROW: dict[str, Any] = {
    "prompt_id": pl.String,
    "prompt": pl.List(pl.Struct({"role": pl.String, "content": pl.String})),
    "columns": pl.String,
    "hash": pl.String,
    "asked": pl.List(pl.String),
}


@dataclass
class LeftOut:
    """A column that no prompt needs and that cannot be kept: of how many rows, and why at the first of them."""

    place: str
    why: str
    rows: int = 0


@dataclass
class Read:
    """The usable rows of a set of prompts, place and fault of each of the others, and columns that were left out."""

    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=ROW))
    bad: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)  # columns, by name


def read_prompts(asked: PromptRows, knob: str, on_bad_row: str = "fail") -> Read:
    """By batches, so that only one of them exists as Python objects at a time."""
    read = Read()
    rows = _converted(asked, knob, read)
    batches = (
        pl.DataFrame(batch, schema=ROW) for batch in iter(lambda: list(islice(rows, BATCH)), [])
    )
    read.rows = pl.concat([read.rows, *batches])
    _check_rows(asked, knob, on_bad_row, read.rows.height, read.bad)
    return read


def summarize_prompts(asked: PromptRows, knob: str, on_bad_row: str = "fail") -> Summary:
    """Refuses what `read_prompts` refuses, and keeps no row."""
    read = Read()
    count, columns = 0, set[str]()
    for row in _converted(asked, knob, read):
        count += 1
        columns |= json.loads(row["columns"]).keys()
    _check_rows(asked, knob, on_bad_row, count, read.bad)
    return Summary(count, frozenset(columns))


def _check_rows(
    asked: PromptRows, knob: str, on_bad_row: str, usable: int, bad: list[tuple[str, str]]
) -> None:
    if bad and on_bad_row == "fail":
        raise UserError(_refused(asked, knob, usable, bad))
    if not usable:
        listed = ":\n" + "\n".join(_listed(bad)) + "\n " if bad else "."
        raise UserError(
            f'{_name(asked)}: holds no prompt{listed} Expected rows such as {{"prompt": "Who are you?"}}.'
        )


def _converted(asked: PromptRows, knob: str, read: Read) -> Iterator[Row]:
    if asked.shape == "columns" and not asked.columns:
        raise UserError(
            f"{knob}.shape=columns: {knob}.columns says nothing. Give {{prompt: …}} with the file's names."
        )
    shape: str = asked.shape
    seen: set[str] = set()
    for place, fault, row in each_row(asked.source, knob):
        try:
            if fault:
                raise Fault(fault)
            row = _renamed(asked.columns, row)
            shape = shape if shape not in BY_COLUMNS else shape_of(row, knob)
            made = _new(converted(shape, row), seen)
        except Fault as known:
            read.bad.append((place, make_printable(str(known))))
            continue
        for name, why in made.pop("left_out").items():
            read.left_out.setdefault(name, LeftOut(place, why)).rows += 1
        yield made


def _new(row: Row, seen: set[str]) -> Row:
    """A hash may come again, of the same prompt; a name given by hand may not."""
    if row.pop("named"):
        if row["prompt_id"] in seen:
            raise Fault(f"id {row['prompt_id']!r} stands on an earlier line already")
        seen.add(row["prompt_id"])
    return row


def _refused(asked: PromptRows, knob: str, usable: int, bad: list[tuple[str, str]]) -> str:
    head = f"{_name(asked)}: {len(bad)} of {pluralize(len(bad) + usable, 'row')} cannot be used:"
    skip = "" if "." in knob else f", or leave them out and count them with {knob}.on_bad_row=skip"
    return "\n".join([head, *_listed(bad), f"  Mend them{skip}."])


def _listed(bad: list[tuple[str, str]]) -> list[str]:
    more = [f"  … and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    return [*(f"  {place}: {fault}" for place, fault in bad[:SHOWN]), *more]


def _name(asked: PromptRows) -> str:
    return asked.source.path if isinstance(asked.source, FileRows) else asked.source.dataset


# ── one row ───────────────────────────────────────────────────────────────────────────────────────────────────────


def prompt_row(messages: Messages, columns: Row, given: Any = None) -> Row:
    """One row of the `prompts` table; without an id of its own a prompt is named by the hash of its messages."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=repr)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "prompt_id": digest[:16] if given is None else str(given),
        "prompt": [{"role": m["role"], "content": m["content"]} for m in messages],
        "columns": json.dumps(columns, sort_keys=True, ensure_ascii=False, allow_nan=False),
        "hash": digest,
        "asked": [m["content"] for m in messages if m["role"] == "user"],
    }


def text_of(messages: Messages) -> str:
    """What is compared with evaluation prompts: the user's words."""
    return "\n".join(m["content"] for m in messages if m["role"] == "user")


def converted(shape: str, row: Row) -> Row:
    """A row of the table; `named` says whether it brought an id."""
    row = dict(row)
    system, given = row.pop("system", None), _id(row.pop("id", None))
    messages = _with_system(SHAPES[shape](row), system)
    asked = row["turns"] if shape == "turns" else None
    if fault := unwritable([messages, asked, given]):
        raise Fault(f"its prompt or its id {fault}")
    left_out = {
        make_printable(name): why for name, value in row.items() if (why := _odd(name, value))
    }
    made = prompt_row(
        messages,
        {name: value for name, value in row.items() if make_printable(name) not in left_out},
        given,
    )
    return {
        **made,
        "asked": asked or made["asked"],
        "named": given is not None,
        "left_out": left_out,
    }


def _renamed(names: Mapping[str, str], row: Row) -> Row:
    if absent := [theirs for theirs in names.values() if theirs not in row]:
        raise Fault(f"no column {', '.join(absent)}. {suggest(absent[0], list(row))}")
    ours = {ours: row[theirs] for ours, theirs in names.items()}
    return {**{name: value for name, value in row.items() if name not in names.values()}, **ours}


def _with_system(messages: Messages, system: Any) -> Messages:
    if not isinstance(system, str | None):
        raise Fault("'system' is not text")
    if system and messages[0]["role"] == "system":
        raise Fault("has both 'system' and a system message")
    if messages[-1]["role"] != "user":
        raise Fault("the last message is not the user's")
    if not messages[-1]["content"].strip():
        raise Fault("the prompt is empty")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _id(given: Any) -> Any:
    """A table with a missing id holds all of them as floats, and the missing one as NaN."""
    if isinstance(given, float) and (math.isnan(given) or given.is_integer()):
        return None if math.isnan(given) else int(given)
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if not isinstance(given, str) or not given.strip():
        raise Fault(f"id is {given!r}; expected a text or a whole number")
    return given


def _odd(name: str, value: Any) -> str | None:
    """Why a column cannot be kept as JSON, if so."""
    if fault := unwritable([name, value]):
        return fault
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        return f"is not JSON ({error})"
    except ValueError:
        return "holds NaN or an infinity, which JSON has not"
    return None
