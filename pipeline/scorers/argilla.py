"""What people said in Argilla, as rows of one word each: its records as JSON, or flattened, one record a row.

`records.to_json` nests the answers to a question; `records.to_datasets()` and `to_list(flatten=True)` put them, who
gave them and in which state they are into columns of lists, which a CSV holds as they are printed.
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
PRINTED = re.compile(
    rf"\[\s*(?:{WORD}(?:\s*,\s*|\s+|(?=\])))*\]"
)  # with commas by Python, without them by NumPy
RENAME = " Name the dataset's question verdict, with the labels a, b and tie."


def of_argilla(rows: list[Any]) -> bool:
    parts = {"fields", "metadata", "responses"}
    return bool(rows) and all(isinstance(row, dict) and parts <= row.keys() for row in rows)


def nested_rows(path: Path, text: str, expected: str) -> Iterator[tuple[str, Row]]:
    """A record is a pair, with the answers of all who were asked for its `verdict`."""
    try:
        records = json.loads(text)
    except (ValueError, RecursionError):
        records = None
    if not isinstance(records, list) or not of_argilla(records):
        raise UserError(
            f"{path}: it is no list of Argilla's records (records.to_json). Give a JSONL or CSV file with {expected}."
        )
    for number, record in enumerate(records, 1):
        asked = {name: answers for name, answers in record["responses"].items() if answers}
        if asked and "verdict" not in asked:
            raise UserError(
                f"{path}, record {number}: people answer {', '.join(asked)} there, and not verdict.{RENAME}"
            )
        for said in asked.get("verdict", []):
            told = {**record["fields"], **record["metadata"]}
            yield (
                f"{path}, record {number}",
                {**told, "verdict": said["value"], "annotator": said["user_id"]},
            )


def is_flat(row: Row) -> bool:
    return any(name.endswith(".responses") for name in row)


def flat_rows(place: str, row: Row) -> Iterator[tuple[str, Row]]:
    """As many rows as answers that were handed in: what is a draft, or was discarded, is no verdict."""
    if ANSWERS not in row:
        other = ", ".join(
            name.removesuffix(".responses") for name in row if name.endswith(".responses")
        )
        raise UserError(f"{place}: people answer {other} there, and not verdict.{RENAME}")
    answers, users = _listed(place, row, ANSWERS), _listed(place, row, USERS)
    states = _listed(place, row, STATES) if row.get(STATES) else ["submitted"] * len(answers)
    if not len(answers) == len(users) == len(states):
        raise UserError(
            f"{place}: it has {len(answers)} {ANSWERS}, {len(users)} {USERS} and {len(states)} {STATES}; as many of"
            " each were expected. Export the records once more, best with records.to_json."
        )
    for verdict, annotator, state in zip(answers, users, states, strict=True):
        if state in ("submitted", None):
            yield place, {**row, "verdict": verdict, "annotator": annotator}


def _listed(place: str, row: Row, name: str) -> list[str | None]:
    """A list of words, also as it is printed in a cell."""
    value = row.get(name) or []
    if isinstance(value, list):
        return value
    if not PRINTED.fullmatch(value.strip()):
        raise UserError(
            f"{place}: {name}={value[:40]} is no list of words as Argilla's records have them.\n"
            f"  Export them as JSON, which holds lists: dataset.records.to_json('records.json')."
        )
    return [None if word == "None" else word[1:-1] for word in re.findall(WORD, value)]
