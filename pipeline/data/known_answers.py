"""Prompts whose right and wrong answers are known, to measure a scorer by.

A row in the shape of RewardBench 2 has `prompt, chosen: [texts], rejected: [texts], subset`, and an
`id` such as `ref:7` or `tied:7` in its subset of ties; RewardBench's rows have one text for each.
Any other file is annotators' labels (see `label_files`): of two answers, the preferred one is
right. Two files of labels, such as LLMBar's, are two subsets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.data.human_pairs import HumanComparison, read_human_comparisons
from pipeline.data.jsonl import find_unwritable, message_fault
from pipeline.data.label_files import EXPECTED, find_majority
from pipeline.data.readers import ReadRow, Row, read_files
from pipeline.errors import UserError, describe_place

SHAPE = {"prompt", "chosen", "rejected"}
TIES = "Ties"  # RewardBench 2's subset of prompts with several right answers
TIES_ID = re.compile(r"(ref|tied):(.+)")
LABELS_NAME = "dataset"  # LLMBar/Natural/dataset.json is the subset Natural


@dataclass(frozen=True)
class KnownAnswers:
    key: str
    subset: str
    prompt: list[dict[str, str]]
    right: list[str]
    wrong: list[str]
    columns: dict[str, Any] = field(default_factory=dict)  # what else the row has
    tie: tuple[str, str] | None = None  # `ref` or `tied`, and what the two of a pair share

    @property
    def answers(self) -> list[str]:
        return [*self.right, *self.wrong]


@dataclass(frozen=True)
class KnownAnswersFile:
    rows: list[KnownAnswers]
    undecided: int  # pairs without a preferred answer, which measure nothing


def read_known_answers(place: Path) -> KnownAnswersFile:
    if not place.exists():
        raise UserError(
            f"{place}: no such file or folder{describe_place(place)}."
            " Give the path of one that exists."
        )
    if place.suffix.lower() != ".csv" and not _is_folder_of_labels(place):
        rows = read_files(place)
        first = next(rows, None)
        if first and first[2].keys() >= SHAPE:
            return _read_rankings(place, chain([first], rows))
    return _read_labels(place)


def _is_folder_of_labels(place: Path) -> bool:
    """Labels may be CSV with a byte order mark, which other rows may not have."""
    return place.is_dir() and any(file.suffix.lower() == ".csv" for file in place.iterdir())


# ── RewardBench 2 ─────────────────────────────────────────────────────────────────────────────────


def _read_rankings(place: Path, rows: Iterator[ReadRow]) -> KnownAnswersFile:
    known = [_parse_ranking(place, where, fault, row) for where, fault, row in rows]
    _check_ties(place, known)
    return KnownAnswersFile(known, 0)


def _parse_ranking(place: Path, where: str, fault: str | None, row: Row) -> KnownAnswers:
    right, wrong = _to_texts(row.get("chosen")), _to_texts(row.get("rejected"))
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    is_chat = isinstance(messages, list) and bool(messages) and not message_fault(messages)
    count = row.get("num_correct")
    if not fault and not is_chat:
        fault = "its prompt is neither text nor messages"
    elif not fault and not (right and wrong):
        fault = "its chosen and its rejected are not texts, or lists of texts with at least one"
    elif not fault and count is not None and count != len(right):
        fault = f"num_correct is {count}, and it has {len(right)} chosen"
    fault = fault or find_unwritable([messages, right, wrong])
    if fault:
        raise UserError(
            f"{place}, {where}: {fault}.\n"
            "  Expected prompt, chosen: [right answers] and rejected: [wrong answers], with subset."
        )
    assert isinstance(messages, list)
    subset = str(row.get("subset") or place.stem)
    match = TIES_ID.fullmatch(str(row.get("id"))) if subset == TIES else None
    tie = (match[1], match[2]) if match else None
    columns = {name: value for name, value in row.items() if name not in SHAPE}
    return KnownAnswers(f"{place}, {where}", subset, messages, right, wrong, columns, tie)


def _to_texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    is_texts = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if is_texts else []


def _check_ties(place: Path, known: list[KnownAnswers]) -> None:
    """Each prompt of the ties is there twice: with one right answer, and with several."""
    found: dict[str, list[str]] = {}
    for row in known:
        if row.tie:
            found.setdefault(row.tie[1], []).append(row.tie[0])
    for number, kinds in found.items():
        if sorted(kinds) != ["ref", "tied"]:
            raise UserError(
                f"{place}: the subset {TIES} has {' and '.join(f'{k}:{number}' for k in kinds)},"
                f" and expected is one ref:{number} with one tied:{number}.\n"
                "  Give whole pairs, as RewardBench 2 has them."
            )


# ── labels ────────────────────────────────────────────────────────────────────────────────────────


def _read_labels(place: Path) -> KnownAnswersFile:
    try:
        pairs = read_human_comparisons(place)
    except UserError as error:
        if EXPECTED not in str(error):
            raise
        raise UserError(
            f"{error}\n  Or prompt, chosen: [right answers] and rejected: [wrong answers], as"
            " RewardBench 2 has them."
        ) from error
    subset = place.absolute().parent.name if place.stem == LABELS_NAME else place.stem
    rows = [row for pair in pairs if (row := _rank_pair(place, subset, pair))]
    return KnownAnswersFile(rows, len(pairs) - len(rows))


def _rank_pair(place: Path, subset: str, pair: HumanComparison) -> KnownAnswers | None:
    """None where the annotators call it a tie, or have no majority."""
    verdict = find_majority(pair.votes.values())
    if verdict not in (0.0, 1.0):
        return None
    right, wrong = (pair.first, pair.second) if verdict else (pair.second, pair.first)
    return KnownAnswers(f"{place} {pair.key}", subset, pair.prompt, [right], [wrong])
