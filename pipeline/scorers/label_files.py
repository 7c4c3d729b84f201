"""What people said about answers, read from files: ratings, duels by id, and duels with their texts.

JSONL or CSV, a row for each annotator's word, in one of three shapes:
`sample_id, score` · `chosen_id, rejected_id` · `a_id, b_id, verdict` (a, b or tie); and
`annotator` where there are several. The last is what `strop label` writes, with `prompt, a, b` beside it. A row whose
verdict is empty was not judged. Argilla's exports of those pairs are read as such rows (see `argilla`).
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import find_unwritable
from pipeline.errors import UserError, shown
from pipeline.scorers import argilla

Row = dict[str, Any]
A_WINS = {"a": 1.0, "tie": 0.5, "b": 0.0}
SHAPES = (("sample_id", "score"), ("chosen_id", "rejected_id"), ("a_id", "b_id", "verdict"))


@dataclass(frozen=True)
class Rating:
    sample_id: str
    score: float
    annotator: str


@dataclass(frozen=True)
class Duel:
    """One annotator's verdict on two answers, a_id before b_id in the order of ids."""

    a_id: str
    b_id: str
    a_wins: float  # 1, 0 or a tie's 0.5
    annotator: str


def read_labels(path: Path) -> list[Rating] | list[Duel]:
    said: dict[tuple[str, ...], Rating | Duel] = {}
    for place, row in rows_of(path):
        label = _label(place, row)
        if label is None:
            continue
        ids = (label.sample_id,) if isinstance(label, Rating) else (label.a_id, label.b_id)
        if fault := find_unwritable([*ids, label.annotator]):
            raise UserError(f"{place}: an id or the annotator {fault}. Give it as text.")
        if said.setdefault((*ids, label.annotator), label) != label:
            raise UserError(f"{place}: {label.annotator or 'the annotator'} said something else about {' and '.join(ids)}"
                          " before. Keep one of the two rows, or name the annotators.")  # fmt: skip
    if not said:
        raise UserError(f"{path}: no row has a label. Give rows with {_shapes()}.")
    if len({type(label) for label in said.values()}) > 1:
        raise UserError(
            f"{path}: some rows are scores and some are preferences. Give each in a file and a scorer of its own."
        )
    return list(said.values())  # type: ignore[return-value]


def read_votes(path: str, knob: str) -> list[Duel]:
    """For contests of models, which marks of single answers decide nothing about."""
    votes = [one for one in read_labels(Path(path).expanduser()) if isinstance(one, Duel)]
    if not votes:
        name = knob.rpartition(".")[2]
        raise UserError(
            f"{knob}={path}: it has scores of single answers, and a contest needs verdicts on two.\n"
            f"  Mount it as a scorer: +scorer@exam.score.scorers.{name}=labels exam.score.scorers.{name}.path={path}"
        )
    return votes


def _label(place: str, row: Row) -> Rating | Duel | None:
    annotator = str(row.get("annotator") or "")
    if "sample_id" in row and "score" in row:
        return (
            None
            if row["score"] in (None, "")
            else Rating(str(row["sample_id"]), _number(place, row), annotator)
        )
    if "chosen_id" in row and "rejected_id" in row:
        return _duel(place, str(row["chosen_id"]), str(row["rejected_id"]), 1.0, annotator)
    if {"a_id", "b_id", "verdict"} <= row.keys():
        verdict = verdict_of(place, row["verdict"])
        return (
            None
            if verdict is None
            else _duel(place, str(row["a_id"]), str(row["b_id"]), A_WINS[verdict], annotator)
        )
    raise UserError(f"{place}: its columns are {', '.join(row)}. Expected {_shapes()}.")


def _duel(place: str, a: str, b: str, a_wins: float, annotator: str) -> Duel:
    if a == b:
        raise UserError(f"{place}: {a} is compared with itself. Give the ids of two answers.")
    return Duel(a, b, a_wins, annotator) if a < b else Duel(b, a, 1 - a_wins, annotator)


def _number(place: str, row: Row) -> float:
    try:
        score = float(row["score"])
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{place}: score={shown(repr(row['score']), 40)} is no number. Leave it empty where nobody gave one."
        )
    return score


def verdict_of(place: str, told: Any) -> str | None:
    word = str(told or "").strip().lower()
    if word and word not in A_WINS:
        raise UserError(
            f"{place}: its verdict is {shown(repr(told), 40)}. Expected a, b or tie, or nothing where nobody judged."
        )
    return word or None


def _shapes() -> str:
    return " or ".join("+".join(shape) for shape in SHAPES)


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row with the words for its place; a folder's files, such as one of each annotator, are read as one."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            yield from rows_of(file) if file.suffix.lower() in READERS else ()
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a text file ({type(error).__name__}). Give a JSONL or CSV file."
        ) from error
    for place, row in READERS.get(path.suffix.lower(), _jsonl_rows)(path, text):
        yield from argilla.flat_rows(place, row) if argilla.is_flat(row) else [(place, row)]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(
        max(csv.field_size_limit(), len(text) + 1)
    )  # an answer may be longer than csv expects
    for number, row in enumerate(_csv_table(path, text), 1):
        if None in row:
            raise UserError(
                f"{path}, row {number}: it has more cells than the first line has names. Save it as CSV again."
            )
        yield f"{path}, row {number}", {name: _unquoted(value) for name, value in row.items()}


def _csv_table(path: Path, text: str) -> Iterator[Row]:
    try:
        yield from csv.DictReader(io.StringIO(text, newline=""))
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read as CSV ({error}). Save it as CSV again."
        ) from error


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: this line is no JSON object. Expected one a line, with {_shapes()}."
            )
        yield f"{path}:{number}", row


def _argilla_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    return argilla.nested_rows(path, text, _shapes())


def _unquoted(value: str | None) -> str | None:
    """`strop label` puts an apostrophe before what a spreadsheet would take for a formula."""
    return value[1:] if value and value[0] == "'" and value[1:2] in FORMULA else value


FORMULA = ("=", "+", "-", "@", "\t", "\r")
READERS = {".csv": _csv_rows, ".json": _argilla_rows, ".jsonl": _jsonl_rows}
