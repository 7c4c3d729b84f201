"""Pairs of answers that annotators judged, with their texts.

PandaLM's and LLMBar's files as published, and our own, also by way of Argilla. A vote is 1 where
the first answer is better, 0 where the second is, 0.5 for a tie.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import find_unwritable, message_fault
from pipeline.errors import UserError, make_printable
from pipeline.scorers.argilla import is_argilla
from pipeline.scorers.label_files import A_WINS, parse_verdict_cell, read_rows

Row = dict[str, Any]
VOTES = {"0": 0.5, "1": 1.0, "2": 0.0}
EXPECTED = (
    "Expected PandaLM's testset-v1.json (idx, instruction, input, response1, response2,"
    " annotator1 …), LLMBar's dataset.json (input, output_1, output_2, label), the verdicts that"
    " strop label saves (a_id, b_id, prompt, a, b, verdict), or what Argilla exports of its pairs"
    " (records.to_json, or records.to_datasets().to_csv)."
)


@dataclass(frozen=True)
class HumanComparison:
    """One pair and its annotators' votes."""

    key: str
    prompt: list[dict[str, str]]
    first: str
    second: str
    votes: dict[str, float]

    @property
    def prompt_key(self) -> str:
        """Names the prompt: pairs of one prompt are not independent evidence."""
        return json.dumps(self.prompt)

    @property
    def majority(self) -> float | None:
        """What most annotators voted; None where they are split."""
        ranked = Counter(self.votes.values()).most_common(2)
        return None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def read_human_comparisons(path: Path) -> list[HumanComparison]:
    if path.suffix == ".json" and not is_argilla(rows := _load_objects(path)):
        pairs = [
            _parse_published(f"{path}, row {number}", number, row)
            for number, row in enumerate(rows, 1)
        ]
    else:
        pairs = list(_read_own(path))
    if not pairs:
        raise UserError(f"{path}: it has no judged pair. {EXPECTED}")
    return pairs


def _load_objects(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({type(error).__name__}). {EXPECTED}"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not a list of objects. {EXPECTED}")
    return rows


def _parse_published(place: str, number: int, row: Row) -> HumanComparison:
    if {"instruction", "response1", "response2", "annotator1"} <= row.keys():
        texts = (_to_text(row["instruction"]), _to_text(row.get("input")))
        question = "\n\n".join(text for text in texts if text)
        annotators = [name for name in row if name.startswith("annotator")]
        votes = {name: _parse_vote(place, row[name]) for name in annotators}
        first, second = _to_text(row["response1"]), _to_text(row["response2"])
    elif {"input", "output_1", "output_2", "label"} <= row.keys():
        question, first, second = row["input"], row["output_1"], row["output_2"]
        votes = {"label": _parse_vote(place, row["label"])}
    else:
        raise UserError(f"{place}: its columns are {', '.join(row)}. {EXPECTED}")
    messages = _check_texts(place, question, first, second)
    return HumanComparison(f"pair-{number}", messages, first, second, votes)


def _to_text(value: str | float | None) -> str:
    """PandaLM's file has NaN for an empty input, as pandas writes it."""
    return value if isinstance(value, str) else ""


def _check_texts(place: str, prompt: Any, first: Any, second: Any) -> list[dict[str, str]]:
    """The prompt as messages, after the check that it and both answers are text."""
    is_chat = isinstance(prompt, list) and prompt and not message_fault(prompt)
    faults = {
        "the prompt": None if isinstance(prompt, str) or is_chat else "is not text or messages",
        "the first answer": None if isinstance(first, str) else "is not text",
        "the second answer": None if isinstance(second, str) else "is not text",
    }
    for name, value in zip(faults, (prompt, first, second), strict=True):
        if fault := faults[name] or find_unwritable(value):
            raise UserError(f"{place}: {name} {fault}. Correct the row, or leave it out.")
    return prompt if is_chat else [{"role": "user", "content": prompt}]


def _parse_vote(place: str, value: Any) -> float:
    if str(value) not in VOTES:
        shown = make_printable(repr(value), 40)
        raise UserError(
            f"{place}: a verdict is {shown}. Expected 1 or 2, the better answer, or 0 for a tie."
        )
    return VOTES[str(value)]


def _read_own(path: Path) -> Iterator[HumanComparison]:
    """One comparison with several votes for the rows of a pair, whichever answer was A."""
    pairs: dict[tuple[str, str], HumanComparison] = {}
    for place, row in read_rows(path):
        if not {"a_id", "b_id", "verdict", "prompt", "a", "b"} <= row.keys():
            raise UserError(f"{place}: its columns are {', '.join(row)}. {EXPECTED}")
        verdict = parse_verdict_cell(place, row["verdict"])
        ids = (str(row["a_id"]), str(row["b_id"]))
        if verdict is None:
            continue
        annotator = str(row.get("annotator") or "")
        if fault := find_unwritable([*ids, annotator]):
            raise UserError(f"{place}: an id or the annotator {fault}. Give it as text.")
        vote, is_swapped = A_WINS[verdict], ids[::-1] in pairs
        pair = pairs.setdefault(ids[::-1] if is_swapped else ids, _make_comparison(place, ids, row))
        vote = 1 - vote if is_swapped else vote
        if pair.votes.setdefault(annotator, vote) != vote:
            raise UserError(
                f"{place}: this annotator judged {ids[0]} and {ids[1]} otherwise before."
                " Keep one of the rows."
            )
    yield from pairs.values()


def _make_comparison(place: str, ids: tuple[str, str], row: Row) -> HumanComparison:
    messages = _check_texts(place, row["prompt"], row["a"], row["b"])
    return HumanComparison(" ".join(ids), messages, row["a"], row["b"], {})
