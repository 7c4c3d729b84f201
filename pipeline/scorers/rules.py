"""Scores that need no model: pure functions of a completion and its prompt's columns, `{"": whole, criterion: part}`.

A checker that cannot read its columns raises; a bad answer never does.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from pipeline.config import RuleScorer
from pipeline.scorers import Answer, Mark

Columns = dict[str, Any]


class Rules:
    def __init__(self, cfg: RuleScorer):
        self.rule = RULES[cfg.rule]

    def mark(self, answers: list[Answer]) -> Iterator[Mark]:
        for answer in answers:
            try:
                scores = self.rule(answer.completion, answer.columns)
            except Exception as error:  # a rule's fault must cost one score, not the run; it is counted
                yield Mark(answer.sample_id, None, detail=f"{type(error).__name__}: {error}")
                continue
            for criterion, score in scores.items():
                if math.isfinite(score):
                    yield Mark(answer.sample_id, float(score), criterion)
                else:
                    yield Mark(answer.sample_id, None, criterion, f"the rule gave {score}")

    def close(self) -> None:
        pass


def playground(completion: str, columns: Columns) -> dict[str, float]:
    """The share of the prompt's constraints that the answer obeys, and 0 or 1 for each. No words: nothing is obeyed."""
    text = completion.strip()
    empty = not re.search(r"\w", text)
    marks = {c["kind"]: 0.0 if empty else float(_obeys(text, c)) for c in columns["constraints"]}
    return {"": sum(marks.values()) / len(marks), **marks}


def _obeys(text: str, constraint: Columns) -> bool:
    match constraint["kind"]:
        case "sentences":
            return len(_sentences(text)) == constraint["count"] and text[-1] in ".!?"
        case "mention":
            return _has_word(text, constraint["word"])
        case "open":
            return re.match(rf"{re.escape(constraint['word'])}\b", text, re.IGNORECASE) is not None
        case "close":
            return _sentences(text)[-1].casefold() == constraint["sentence"].casefold()
        case "avoid":
            return not _has_word(text, constraint["word"])
        case "lower":
            return text == text.lower()
        case kind:
            raise ValueError(f"no rule checks a constraint of kind {kind!r}")


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _sentences(text: str) -> list[str]:
    """A sentence ends with . ! or ? before a space or the end; what follows the last such mark is one more."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]


RULES = {"playground": playground}
