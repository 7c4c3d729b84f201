"""Annotators' labels read from files: ratings of answers, and verdicts on two.

A row is one annotator's label, as JSON on a line: `a_id, b_id, verdict` (a, b or tie) with the
texts `prompt, a, b`, as `strop label` saves it, or `sample_id, score`; with `annotator` where there
are several. A row whose verdict or score is empty was not judged. Files of any other shape become
such rows as they are read (see `label_shapes`), with `pair` for the ids where answers have none.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import find_unwritable, message_fault
from pipeline.data.label_shapes import Row, convert_row
from pipeline.errors import UserError, describe_place, make_printable

A_WINS = {"a": 1.0, "tie": 0.5, "b": 0.0}
EXPECTED = (
    "Expected sample_id+score or chosen_id+rejected_id or a_id+b_id+verdict in each row; or"
    " PandaLM's testset-v1.json (idx, instruction, input, response1, response2, annotator1 …),"
    " LLMBar's dataset.json (input, output_1, output_2, label), or what Argilla exports of the"
    " pairs of strop label (records.to_json, or records.to_datasets().to_csv)."
)


@dataclass(frozen=True)
class PairTexts:
    prompt: list[dict[str, str]]
    first: str
    second: str


@dataclass(frozen=True)
class Label:
    """One annotator's rating of an answer, or verdict on two."""

    place: str  # file and row, for messages
    # Of the rated answer, or of two that were compared; a published pair has one name for both.
    ids: tuple[str, ...]
    is_verdict: bool
    value: float  # the rating; 1 where the first answer is better, 0 the second, 0.5 for a tie
    annotator: str
    texts: PairTexts | None  # where the row has them

    @property
    def has_ids(self) -> bool:
        """Whether the answers can be found among a run's samples."""
        return len(self.ids) == 2 or not self.is_verdict

    def swap(self) -> "Label":
        """The same verdict with the answers in the other order."""
        texts = self.texts
        if texts:
            texts = PairTexts(texts.prompt, texts.second, texts.first)
        return replace(self, ids=self.ids[::-1], value=1 - self.value, texts=texts)


def read_labels(path: Path) -> list[Label]:
    """Each pair of answers in the order of its first row, whichever was A in later ones."""
    labels: dict[tuple[tuple[str, ...], str], Label] = {}
    orders: dict[frozenset[str], tuple[str, ...]] = {}
    for place, row in read_rows(path):
        if (label := _parse_row(place, row)) is None:
            continue
        if orders.setdefault(frozenset(label.ids), label.ids) != label.ids:
            label = label.swap()
        if labels.setdefault((label.ids, label.annotator), label).value != label.value:
            raise UserError(
                f"{place}: {label.annotator or 'the annotator'} labelled"
                f" {' and '.join(label.ids)} otherwise before."
                " Keep one of the two rows, or name the annotators."
            )
    if not labels:
        raise UserError(f"{path}: no row has a label. {EXPECTED}")
    if len({label.is_verdict for label in labels.values()}) > 1:
        raise UserError(
            f"{path}: some rows are scores and some are preferences."
            " Give each kind in a separate file, with a separate scorer."
        )
    return list(labels.values())


def read_sample_labels(path: Path) -> list[Label]:
    """Labels of samples, which they name by their ids."""
    labels = read_labels(path)
    for label in labels:
        if not label.has_ids:
            raise UserError(
                f"{label.place}: this pair does not name its answers by the ids of samples."
                f" Give rows with them; strop calibrate reads this file. {EXPECTED}"
            )
    return labels


def read_votes(path: str, knob: str) -> list[Label]:
    """For contests of models, about which scores of single answers decide nothing."""
    labels = read_sample_labels(Path(path).expanduser())
    if not labels[0].is_verdict:
        name = knob.rpartition(".")[2]
        raise UserError(
            f"{knob}={path}: it has scores of single answers, and a contest needs verdicts on two."
            f"\n  Mount it as a scorer: +scorer@evaluate.score.scorers.{name}=labels"
            f" evaluate.score.scorers.{name}.path={path}"
        )
    return labels


def find_majority(values: Iterable[float]) -> float | None:
    """The most frequent value; None where no other is rarer than it."""
    ranked = Counter(values).most_common(2)
    return None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


# ── a row ─────────────────────────────────────────────────────────────────────────────────────────


def _parse_row(place: str, row: Row) -> Label | None:
    """None where no annotator judged."""
    annotator = str(row.get("annotator") or "")
    ids: tuple[str, ...]
    is_verdict = not {"sample_id", "score"} <= row.keys()
    if not is_verdict:
        value, ids = _parse_score(place, row["score"]), (str(row["sample_id"]),)
    elif {"a_id", "b_id", "verdict"} <= row.keys():
        value, ids = _parse_verdict(place, row["verdict"]), (str(row["a_id"]), str(row["b_id"]))
    elif {"pair", "verdict"} <= row.keys():
        value, ids = _parse_verdict(place, row["verdict"]), (str(row["pair"]),)
    else:
        raise UserError(f"{place}: its columns are {', '.join(row)}. {EXPECTED}")
    if value is None:
        return None
    if len(ids) == 2 and ids[0] == ids[1]:
        raise UserError(f"{place}: {ids[0]} is compared with itself. Give the ids of two answers.")
    if fault := find_unwritable([*ids, annotator]):
        raise UserError(f"{place}: an id or the annotator {fault}. Give it as text.")
    texts = _parse_texts(place, row) if row.keys() >= {"prompt", "a", "b"} else None
    return Label(place, ids, is_verdict, value, annotator, texts)


def _parse_score(place: str, value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{place}: score={make_printable(repr(value), 40)} is not a number."
            " Leave it empty where no annotator gave one."
        )
    return score


def _parse_verdict(place: str, value: Any) -> float | None:
    word = str(value or "").strip().lower()
    if word and word not in A_WINS:
        raise UserError(
            f"{place}: its verdict is {make_printable(repr(value), 40)}."
            " Expected a, b or tie, or nothing where no annotator judged."
        )
    return A_WINS[word] if word else None


def _parse_texts(place: str, row: Row) -> PairTexts:
    prompt, first, second = row["prompt"], row["a"], row["b"]
    is_chat = isinstance(prompt, list) and prompt and not message_fault(prompt)
    faults = {
        "the prompt": None if isinstance(prompt, str) or is_chat else "is not text or messages",
        "the first answer": None if isinstance(first, str) else "is not text",
        "the second answer": None if isinstance(second, str) else "is not text",
    }
    for name, value in zip(faults, (prompt, first, second), strict=True):
        if fault := faults[name] or find_unwritable(value):
            raise UserError(f"{place}: {name} {fault}. Correct the row, or leave it out.")
    messages = prompt if is_chat else [{"role": "user", "content": prompt}]
    return PairTexts(messages, first, second)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


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
            f"{path}: cannot be read as a text file ({type(error).__name__})"
            f"{describe_place(path)}."
            " Give a JSONL or CSV file."
        ) from error
    read = READERS.get(path.suffix.lower(), _read_jsonl)
    for number, (place, row) in enumerate(read(path, text), 1):
        for converted in convert_row(place, f"pair-{number}", row):
            yield place, converted


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
            raise UserError(f"{path}:{number}: this line is not a JSON object. {EXPECTED}")
        yield f"{path}:{number}", row


def _read_json(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({type(error).__name__}). {EXPECTED}"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of objects. {EXPECTED}")
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _unquote(value: str | None) -> str | None:
    """`strop label` puts an apostrophe before what a spreadsheet would take for a formula."""
    return value[1:] if value and value[0] == "'" and value[1:2] in FORMULA_SIGNS else value


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
READERS = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
