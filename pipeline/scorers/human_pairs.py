"""Pairs of answers that people judged, with their texts: PandaLM's and LLMBar's files as published, and our own, also
by way of Argilla.

A vote is 1 where the first answer is better, 0 where the second is, 0.5 for a tie.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.scorers.argilla import of_argilla
from pipeline.scorers.label_files import A_WINS, rows_of, verdict_of

Row = dict[str, Any]
OF_NUMBER = {"0": 0.5, "1": 1.0, "2": 0.0}
EXPECTED = (
    "Expected PandaLM's testset-v1.json (idx, instruction, input, response1, response2, annotator1 …), LLMBar's"
    " dataset.json (input, output_1, output_2, label), the verdicts that strop label saves (a_id, b_id, prompt, a, b,"
    " verdict), or what Argilla exports of its pairs (records.to_json, or records.to_datasets().to_csv)."
)


@dataclass(frozen=True)
class Judged:
    """One pair, its annotators' votes, and what names its prompt: pairs of one prompt are no independent evidence."""

    key: str
    prompt: list[dict[str, str]]
    first: str
    second: str
    votes: dict[str, float]

    @property
    def asked(self) -> str:
        return json.dumps(self.prompt)

    @property
    def verdict(self) -> float | None:
        """What most annotators say; None where they are split."""
        ranked = Counter(self.votes.values()).most_common(2)
        return None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def read_judged(path: Path) -> list[Judged]:
    if path.suffix == ".json" and not of_argilla(rows := _list(path)):
        found = [
            _published(f"{path}, row {number}", number, row) for number, row in enumerate(rows, 1)
        ]
    else:
        found = list(_own(path))
    if not found:
        raise UserError(f"{path}: nobody judged a pair there. {EXPECTED}")
    return found


def _list(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({type(error).__name__}). {EXPECTED}"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: it is no list of objects. {EXPECTED}")
    return rows


def _published(place: str, number: int, row: Row) -> Judged:
    if {"instruction", "response1", "response2", "annotator1"} <= row.keys():
        question = "\n\n".join(
            text for text in (_text(row["instruction"]), _text(row.get("input"))) if text
        )
        people = [name for name in row if name.startswith("annotator")]
        votes = {name: _vote(place, row[name]) for name in people}
        first, second = _text(row["response1"]), _text(row["response2"])
    elif {"input", "output_1", "output_2", "label"} <= row.keys():
        question, first, second = row["input"], row["output_1"], row["output_2"]
        votes = {"label": _vote(place, row["label"])}
    else:
        raise UserError(f"{place}: its columns are {', '.join(row)}. {EXPECTED}")
    return Judged(f"pair-{number}", [{"role": "user", "content": question}], first, second, votes)


def _text(told: str | float | None) -> str:
    """PandaLM's file has NaN where there is no input, as pandas writes what is empty."""
    return told if isinstance(told, str) else ""


def _vote(place: str, told: Any) -> float:
    if str(told) not in OF_NUMBER:
        raise UserError(
            f"{place}: a verdict is {told!r}. Expected 1 or 2, the better answer, or 0 for a tie."
        )
    return OF_NUMBER[str(told)]


def _own(path: Path) -> Iterator[Judged]:
    """Rows of one pair are one pair with several votes, whichever answer each annotator saw as A."""
    pairs: dict[tuple[str, str], Judged] = {}
    for place, row in rows_of(path):
        if not {"a_id", "b_id", "verdict", "prompt", "a", "b"} <= row.keys():
            raise UserError(f"{place}: its columns are {', '.join(row)}. {EXPECTED}")
        verdict, ids = verdict_of(place, row["verdict"]), (str(row["a_id"]), str(row["b_id"]))
        if verdict is None:
            continue
        vote, turned = A_WINS[verdict], ids[::-1] in pairs
        pair = pairs.setdefault(ids[::-1] if turned else ids, _judged(ids, row))
        vote = 1 - vote if turned else vote
        if pair.votes.setdefault(str(row.get("annotator") or ""), vote) != vote:
            raise UserError(
                f"{place}: this annotator judged {ids[0]} and {ids[1]} otherwise before. Keep one of the rows."
            )
    yield from pairs.values()


def _judged(ids: tuple[str, str], row: Row) -> Judged:
    prompt = row["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Judged(" ".join(ids), messages, row["a"], row["b"], {})
