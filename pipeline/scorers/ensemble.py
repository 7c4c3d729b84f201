"""Several scorers' marks as one, prompt by prompt. Each member keeps its own rows; a missing mark is never made up.

An answer that a member or a gate could not mark has no score. One that does not pass a gate stands below all that do:
at their lowest score less one (at -1 where none passes). The others are compared among themselves.
`detail` tells `disagreement`: the share of pairs of the prompt's answers that two members put in opposite order.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, groupby

import numpy as np

from pipeline.config import EnsembleScorer
from pipeline.scorers import Answer, Score

ByMember = Mapping[str, Mapping[str, Score]]  # member → sample id → its whole opinion


def combined(cfg: EnsembleScorer, answers: list[Answer], marks: ByMember) -> Iterator[Score]:
    for _, group in groupby(answers, key=lambda answer: answer.prompt_id):
        yield from _of_prompt(cfg, [answer.sample_id for answer in group], marks)


def _of_prompt(cfg: EnsembleScorer, ids: list[str], marks: ByMember) -> Iterator[Score]:
    lacking = {
        key: names
        for key in ids
        if (names := [m for m in cfg.members if _score(marks, m, key) is None])
    }
    whole = [key for key in ids if key not in lacking]
    shut = {
        key: [
            gate
            for gate, least in cfg.gates.items()
            if marks[gate][key].score < least  # type: ignore[operator]
        ]
        for key in whole
    }
    passing = [key for key in whole if not shut[key]]
    table = np.array([[marks[name][key].score for key in passing] for name in cfg.of], dtype=float)
    scores = dict(
        zip(
            passing,
            COMBINED[cfg.combine](table, np.array(list(cfg.of.values()))).tolist(),
            strict=True,
        )
    )
    lowest = min(scores.values(), default=0.0) - 1
    told = {"disagreement": disagreement(table)} | _flips(cfg, whole, marks)
    for key in ids:
        if key in lacking:
            yield Score(
                key,
                None,
                detail=f"no score by {', '.join(lacking[key])}",
                abstained=_abstains(cfg, key, marks),
            )
        else:
            yield Score(
                key,
                scores.get(key, lowest),
                detail=_detail(told | ({"gates": shut[key]} if shut[key] else {})),
            )


def _score(marks: ByMember, name: str, key: str) -> float | None:
    mark = marks[name].get(key)
    return None if mark is None else mark.score


def _abstains(cfg: EnsembleScorer, key: str, marks: ByMember) -> bool:
    """Whether no member failed: those without a score have no opinion."""
    lacking = [
        mark for name in cfg.members if (mark := marks[name].get(key)) is None or mark.score is None
    ]
    return all(mark is not None and mark.abstained for mark in lacking)


def _flips(cfg: EnsembleScorer, ids: list[str], marks: ByMember) -> dict[str, float | None]:
    """What its members know of their flips is known of the ensemble: the mean."""
    rates = [
        rate
        for name in cfg.of
        for key in ids
        if (rate := _flip_rate(marks[name][key].detail)) is not None
    ]
    return {"flip_rate": float(np.mean(rates))} if rates else {}


def _flip_rate(detail: str) -> float | None:
    if not detail.startswith("{"):
        return None
    try:
        return json.loads(detail).get("flip_rate")
    except ValueError:
        return None


def _detail(told: Mapping[str, object]) -> str:
    known = {
        name: round(value, 6) if isinstance(value, float) else value for name, value in told.items()
    }
    return json.dumps({name: value for name, value in known.items() if value is not None})


# ── ways to combine: members × answers, the members' weights → a score for each answer ────────────────────────────


def mean_rank(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """0 for the last, 1 for the first, ties between; a single answer has no rank and gets the middle."""
    return np.average(np.array([_ranks(row) for row in table]), axis=0, weights=weights)


def _ranks(row: np.ndarray) -> np.ndarray:
    if len(row) < 2:
        return np.full(len(row), 0.5)
    below = (row[None, :] < row[:, None]).sum(axis=1)
    equal = (row[None, :] == row[:, None]).sum(axis=1) - 1
    return (below + equal / 2) / (len(row) - 1)


def mean_z(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many standard deviations above the prompt's mean; a member that sees no difference says 0."""
    if not table.shape[1]:
        return np.empty(0)
    spread = table.std(axis=1, keepdims=True)
    gaps = table - table.mean(axis=1, keepdims=True)
    return np.average(
        np.divide(gaps, spread, out=np.zeros_like(table), where=spread > 1e-12),
        axis=0,
        weights=weights,
    )


def minimum(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return table.min(axis=0)


def majority(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of the other answers that most members, by weight, put below this one; a draw counts half."""
    votes = np.sign(table[:, :, None] - table[:, None, :])
    won = (np.sign(np.tensordot(weights, votes, axes=1)) + 1) / 2
    return (
        (won.sum(axis=1) - 0.5) / (table.shape[1] - 1)
        if table.shape[1] > 1
        else np.full(table.shape[1], 0.5)
    )


COMBINED: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean_rank": mean_rank,
    "mean_z": mean_z,
    "min": minimum,
    "majority": majority,
}


def disagreement(table: np.ndarray) -> float | None:
    """Over two members and two answers at a time: 1 where they order them oppositely, half where one sees no order."""
    signs = [np.sign(row[:, None] - row[None, :])[np.triu_indices(len(row), 1)] for row in table]
    gaps = [abs(a - b) / 2 for a, b in combinations(signs, 2)]
    return float(np.mean(gaps)) if gaps and gaps[0].size else None
