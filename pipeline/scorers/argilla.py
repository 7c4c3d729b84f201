"""Argilla's exports as rows of one verdict each: its records as JSON, or flattened.

`records.to_json` nests the answers to a question. `records.to_datasets()` and
`to_list(flatten=True)` put the answers, their users and their status into columns of lists, which a
CSV holds as they are printed.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

Row = dict[str, Any]
ANSWERS, USERS, STATES = "verdict.responses", "verdict.responses.users", "verdict.responses.status"
WORD = r"""('[^'"]*'|"[^'"]*"|None)"""
# Python prints a list with commas, NumPy without.
PRINTED_LIST = re.compile(rf"\[\s*(?:{WORD}(?:\s*,\s*|\s+|(?=\])))*\]")
RENAME_HINT = " Name the dataset's question verdict, with the labels a, b and tie."


def is_argilla(rows: list[Any]) -> bool:
    parts = {"fields", "metadata", "responses"}
    return bool(rows) and all(isinstance(row, dict) and parts <= row.keys() for row in rows)


def read_nested(path: Path, text: str, expected: str) -> Iterator[tuple[str, Row]]:
    """A record is a pair, with the answers of all its annotators to the question `verdict`."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list) or not is_argilla(records):
        raise UserError(
            f"{path}: not a list of Argilla's records (records.to_json)."
            f" Give a JSONL or CSV file with {expected}."
        )
    for number, record in enumerate(records, 1):
        place = f"{path}, record {number}"
        _check_record(place, record)
        questions = {name: answers for name, answers in record["responses"].items() if answers}
        if questions and "verdict" not in questions:
            raise UserError(
                f"{place}: its question is {', '.join(questions)}, not verdict.{RENAME_HINT}"
            )
        for answer in questions.get("verdict", []):
            pair = {**record["fields"], **record["metadata"]}
            yield place, {**pair, "verdict": answer["value"], "annotator": answer["user_id"]}


def _check_record(place: str, record: Row) -> None:
    parts = [record[name] for name in ("fields", "metadata", "responses")]
    answers = record["responses"].get("verdict") if isinstance(record["responses"], dict) else None
    is_list = isinstance(answers or [], list) and all(
        isinstance(answer, dict) and {"value", "user_id"} <= answer.keys()
        for answer in answers or []
    )
    if not all(isinstance(part, dict) for part in parts) or not is_list:
        raise UserError(
            f"{place}: it is not as records.to_json writes it. Export the records again."
        )


def is_flat(row: Row) -> bool:
    return any(name.endswith(".responses") for name in row)


def read_flat(place: str, row: Row) -> Iterator[tuple[str, Row]]:
    """A row per submitted answer. A draft or a discarded one is not a verdict."""
    if ANSWERS not in row:
        names = [name for name in row if name.endswith(".responses")]
        questions = ", ".join(name.removesuffix(".responses") for name in names)
        raise UserError(f"{place}: its question is {questions}, not verdict.{RENAME_HINT}")
    answers, users = _read_list(place, row, ANSWERS), _read_list(place, row, USERS)
    states = _read_list(place, row, STATES) if row.get(STATES) else ["submitted"] * len(answers)
    if not len(answers) == len(users) == len(states):
        raise UserError(
            f"{place}: it has {len(answers)} {ANSWERS}, {len(users)} {USERS} and"
            f" {len(states)} {STATES}; as many of each were expected."
            " Export the records again, best with records.to_json."
        )
    for verdict, annotator, state in zip(answers, users, states, strict=True):
        if state in ("submitted", None):
            yield place, {**row, "verdict": verdict, "annotator": annotator}


def _read_list(place: str, row: Row, name: str) -> list[str | None]:
    """A list of words, also as it is printed in a cell."""
    value = row.get(name) or []
    if isinstance(value, list):
        return value
    if not isinstance(value, str) or not PRINTED_LIST.fullmatch(value.strip()):
        raise UserError(
            f"{place}: {name}={str(value)[:40]} is not a list of words"
            " as Argilla's records have them.\n"
            "  Export them as JSON, which holds lists: dataset.records.to_json('records.json')."
        )
    return [None if word == "None" else word[1:-1] for word in re.findall(WORD, value)]
