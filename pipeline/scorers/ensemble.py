"""Several scorers' scores as one, prompt by prompt.

Each member keeps its own rows; a missing score is never made up.

An answer that a member or a gate could not score has no score. An answer that fails a gate ranks
below all that pass: at their lowest score less one (at -1 where none passes). The others are
compared among themselves. `detail` holds `disagreement`: the share of pairs of the prompt's answers
that two members put in opposite order.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, groupby

import numpy as np

from pipeline.config import EnsembleScorer
from pipeline.scorers import Answer, Score

ScoresByMember = Mapping[str, Mapping[str, Score]]  # member → sample id → its overall score


def combine_scores(
    cfg: EnsembleScorer, answers: list[Answer], scores: ScoresByMember
) -> Iterator[Score]:
    for _, group in groupby(answers, key=lambda answer: answer.prompt_id):
        yield from _combine_prompt(cfg, [answer.sample_id for answer in group], scores)


def _combine_prompt(cfg: EnsembleScorer, ids: list[str], scores: ScoresByMember) -> Iterator[Score]:
    missing = {
        key: names
        for key in ids
        if (names := [m for m in cfg.members if _get_value(scores, m, key) is None])
    }
    complete = [key for key in ids if key not in missing]
    failed_gates = {
        key: [
            gate
            for gate, threshold in cfg.gates.items()
            if scores[gate][key].score < threshold  # type: ignore[operator]
        ]
        for key in complete
    }
    passing = [key for key in complete if not failed_gates[key]]
    table = np.array(
        [[scores[name][key].score for key in passing] for name in cfg.weights], dtype=float
    )
    combined = COMBINERS[cfg.combine](table, np.array(list(cfg.weights.values())))
    score_of = dict(zip(passing, combined.tolist(), strict=True))
    lowest = min(score_of.values(), default=0.0) - 1
    facts: dict[str, object] = {"disagreement": measure_disagreement(table)}
    facts |= _average_flip_rate(cfg, complete, scores)
    for key in ids:
        if key in missing:
            abstained = _is_abstention(cfg, key, scores)
            detail = f"no score by {', '.join(missing[key])}"
            yield Score(key, None, detail=detail, abstained=abstained)
        else:
            gates = {"gates": failed_gates[key]} if failed_gates[key] else {}
            yield Score(key, score_of.get(key, lowest), detail=_format_detail(facts | gates))


def _get_value(scores: ScoresByMember, name: str, key: str) -> float | None:
    score = scores[name].get(key)
    return None if score is None else score.score


def _is_abstention(cfg: EnsembleScorer, key: str, scores: ScoresByMember) -> bool:
    """Whether no member failed: those without a score have no opinion."""
    members = [scores[name].get(key) for name in cfg.members]
    missing = [score for score in members if score is None or score.score is None]
    return all(score is not None and score.abstained for score in missing)


def _average_flip_rate(
    cfg: EnsembleScorer, ids: list[str], scores: ScoresByMember
) -> dict[str, float | None]:
    """The mean of the flip rates that its members report, if any."""
    rates = [
        rate
        for name in cfg.weights
        for key in ids
        if (rate := _read_flip_rate(scores[name][key].detail)) is not None
    ]
    return {"flip_rate": float(np.mean(rates))} if rates else {}


def _read_flip_rate(detail: str) -> float | None:
    if not detail.startswith("{"):
        return None
    try:
        return json.loads(detail).get("flip_rate")
    except ValueError:
        return None


def _format_detail(facts: Mapping[str, object]) -> str:
    known = {name: value for name, value in facts.items() if value is not None}
    rounded = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in known.items()
    }
    return json.dumps(rounded)


# ── ways to combine: members × answers, the members' weights → a score for each answer ─────────


def mean(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """In the members' own unit, so that it can compare models."""
    return np.average(table, axis=0, weights=weights)


def mean_rank(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """0 for the last, 1 for the first, ties in between.

    A single answer has no rank and gets 0.5.
    """
    return np.average(np.array([_rank(row) for row in table]), axis=0, weights=weights)


def _rank(row: np.ndarray) -> np.ndarray:
    if len(row) < 2:
        return np.full(len(row), 0.5)
    below = (row[None, :] < row[:, None]).sum(axis=1)
    equal = (row[None, :] == row[:, None]).sum(axis=1) - 1
    return (below + equal / 2) / (len(row) - 1)


def mean_z(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Standard deviations above the prompt's mean.

    A member that scores all answers alike counts 0.
    """
    if not table.shape[1]:
        return np.empty(0)
    spread = table.std(axis=1, keepdims=True)
    gaps = table - table.mean(axis=1, keepdims=True)
    z = np.divide(gaps, spread, out=np.zeros_like(table), where=spread > 1e-12)
    return np.average(z, axis=0, weights=weights)


def minimum(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return table.min(axis=0)


def majority(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of the other answers that most members, by weight, put below this one.

    A draw counts half.
    """
    votes = np.sign(table[:, :, None] - table[:, None, :])
    won = (np.sign(np.tensordot(weights, votes, axes=1)) + 1) / 2
    count = table.shape[1]
    if count <= 1:
        return np.full(count, 0.5)
    return (won.sum(axis=1) - 0.5) / (count - 1)  # an answer draws against itself: less 0.5


COMBINERS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": mean,
    "mean_rank": mean_rank,
    "mean_z": mean_z,
    "min": minimum,
    "majority": majority,
}


def measure_disagreement(table: np.ndarray) -> float | None:
    """The mean over two members and two answers at a time.

    1 where the members order the answers oppositely, 0.5 where one of them sees a tie.
    """
    signs = [np.sign(row[:, None] - row[None, :])[np.triu_indices(len(row), 1)] for row in table]
    gaps = [abs(a - b) / 2 for a, b in combinations(signs, 2)]
    return float(np.mean(gaps)) if gaps and gaps[0].size else None
