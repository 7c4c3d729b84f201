"""Annotators' labels read from files: ratings of answers, and preferences between two.

JSONL or CSV, a row per annotator and label, in one of three shapes:
`sample_id, score` · `chosen_id, rejected_id` · `a_id, b_id, verdict` (a, b or tie);
with `annotator` where there are several. `strop label` writes the last shape, with the columns
`prompt, a, b` as well. A row whose verdict is empty was not judged. Argilla's exports of those
pairs are read as such rows (see `argilla`).
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
from pipeline.errors import UserError, make_printable
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
class Preference:
    """One annotator's verdict on two answers. a_id is before b_id in the order of ids."""

    a_id: str
    b_id: str
    a_wins: float  # 1, 0 or a tie's 0.5
    annotator: str


def read_labels(path: Path) -> list[Rating] | list[Preference]:
    labels: dict[tuple[str, ...], Rating | Preference] = {}
    for place, row in read_rows(path):
        label = _parse_label(place, row)
        if label is None:
            continue
        ids = (label.sample_id,) if isinstance(label, Rating) else (label.a_id, label.b_id)
        if fault := find_unwritable([*ids, label.annotator]):
            raise UserError(f"{place}: an id or the annotator {fault}. Give it as text.")
        if labels.setdefault((*ids, label.annotator), label) != label:
            who = label.annotator or "the annotator"
            raise UserError(
                f"{place}: {who} labelled {' and '.join(ids)} otherwise before."
                " Keep one of the two rows, or name the annotators."
            )
    if not labels:
        raise UserError(f"{path}: no row has a label. Give rows with {_describe_shapes()}.")
    if len({type(label) for label in labels.values()}) > 1:
        raise UserError(
            f"{path}: some rows are scores and some are preferences."
            " Give each kind in a separate file, with a separate scorer."
        )
    return list(labels.values())  # type: ignore[return-value]


def read_votes(path: str, knob: str) -> list[Preference]:
    """For contests of models, about which scores of single answers decide nothing."""
    votes = [one for one in read_labels(Path(path).expanduser()) if isinstance(one, Preference)]
    if not votes:
        name = knob.rpartition(".")[2]
        raise UserError(
            f"{knob}={path}: it has scores of single answers, and a contest needs verdicts on two."
            f"\n  Mount it as a scorer: +scorer@evaluate.score.scorers.{name}=labels"
            f" evaluate.score.scorers.{name}.path={path}"
        )
    return votes


def _parse_label(place: str, row: Row) -> Rating | Preference | None:
    annotator = str(row.get("annotator") or "")
    if "sample_id" in row and "score" in row:
        if row["score"] in (None, ""):
            return None
        return Rating(str(row["sample_id"]), _parse_score(place, row), annotator)
    if "chosen_id" in row and "rejected_id" in row:
        chosen, rejected = str(row["chosen_id"]), str(row["rejected_id"])
        return _make_preference(place, chosen, rejected, 1.0, annotator)
    if {"a_id", "b_id", "verdict"} <= row.keys():
        verdict = parse_verdict_cell(place, row["verdict"])
        if verdict is None:
            return None
        a, b = str(row["a_id"]), str(row["b_id"])
        return _make_preference(place, a, b, A_WINS[verdict], annotator)
    raise UserError(f"{place}: its columns are {', '.join(row)}. Expected {_describe_shapes()}.")


def _make_preference(place: str, a: str, b: str, a_wins: float, annotator: str) -> Preference:
    if a == b:
        raise UserError(f"{place}: {a} is compared with itself. Give the ids of two answers.")
    if a < b:
        return Preference(a, b, a_wins, annotator)
    return Preference(b, a, 1 - a_wins, annotator)


def _parse_score(place: str, row: Row) -> float:
    try:
        score = float(row["score"])
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{place}: score={make_printable(repr(row['score']), 40)} is not a number."
            " Leave it empty where no annotator gave one."
        )
    return score


def parse_verdict_cell(place: str, value: Any) -> str | None:
    word = str(value or "").strip().lower()
    if word and word not in A_WINS:
        raise UserError(
            f"{place}: its verdict is {make_printable(repr(value), 40)}."
            " Expected a, b or tie, or nothing where no annotator judged."
        )
    return word or None


def _describe_shapes() -> str:
    return " or ".join("+".join(shape) for shape in SHAPES)


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row with its place, for messages.

    A folder's files, such as one per annotator, are read as one.
    """
    if path.is_dir():
        for file in sorted(path.iterdir()):
            yield from read_rows(file) if file.suffix.lower() in READERS else ()
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a text file ({type(error).__name__})."
            " Give a JSONL or CSV file."
        ) from error
    for place, row in READERS.get(path.suffix.lower(), _read_jsonl)(path, text):
        yield from argilla.read_flat(place, row) if argilla.is_flat(row) else [(place, row)]


def _read_csv(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    # An answer may be longer than csv's limit of a field.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    for number, row in enumerate(_parse_csv(path, text), 1):
        if None in row:
            raise UserError(
                f"{path}, row {number}: it has more cells than the first line has names."
                " Save it as CSV again."
            )
        yield f"{path}, row {number}", {name: _unquote(value) for name, value in row.items()}


def _parse_csv(path: Path, text: str) -> Iterator[Row]:
    try:
        yield from csv.DictReader(io.StringIO(text, newline=""))
    except csv.Error as error:
        raise UserError(
            f"{path}: cannot be read as CSV ({error}). Save it as CSV again."
        ) from error


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: this line is not a JSON object."
                f" Expected one a line, with {_describe_shapes()}."
            )
        yield f"{path}:{number}", row


def _read_argilla(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    return argilla.read_nested(path, text, _describe_shapes())


def _unquote(value: str | None) -> str | None:
    """`strop label` puts an apostrophe before what a spreadsheet would take for a formula."""
    return value[1:] if value and value[0] == "'" and value[1:2] in FORMULA_SIGNS else value


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
READERS = {".csv": _read_csv, ".json": _read_argilla, ".jsonl": _read_jsonl}
