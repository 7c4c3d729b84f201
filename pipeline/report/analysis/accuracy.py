"""How often a scorer puts the right answers above the wrong ones, by subset.

As RewardBench 2 counts it: a prompt is right where a right answer alone has the highest score; k
answers that share the first place count 1/k for each right one among them. The subset of ties has
each prompt twice, with one right answer (`ref`) and with several (`tied`). Of it count: whether all
right answers score above all wrong ones in each, 0.3; whether in `tied` that gap exceeds the spread
of the right answers, 0.2, and whether the smaller gap of both does, 0.2; and 0.01 · tanh(that gap ÷
the spread − 1). A subset's accuracy is the mean over its prompts; the accuracy is the mean over
subsets.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.report.analysis.agreement import BOOTSTRAP, mean
from pipeline.report.analysis.statistics import Estimate, estimate_mean


@dataclass(frozen=True)
class ScoredAnswers:
    """One prompt's scores; None where the scorer failed."""

    subset: str
    prompt: str  # rows of one prompt are not independent
    right: Sequence[float | None]
    wrong: Sequence[float | None]
    tie: tuple[str, str] | None = None  # see `data.known_answers`
    flip_rate: float | None = None  # how often the judge changed its verdict with the order

    @property
    def is_complete(self) -> bool:
        return None not in (*self.right, *self.wrong)

    @property
    def gap(self) -> float:
        """From the best wrong answer up to the worst right one."""
        return min(self._right_scores) - max(_drop_none(self.wrong))

    @property
    def spread(self) -> float:
        return max(self._right_scores) - min(self._right_scores)

    @property
    def credit(self) -> float:
        scores = [*self._right_scores, *_drop_none(self.wrong)]
        top = max(scores)
        return self._right_scores.count(top) / scores.count(top)

    @property
    def _right_scores(self) -> list[float]:
        return _drop_none(self.right)


@dataclass(frozen=True)
class Accuracy:
    """`counts`: of prompts, by how their answers were ranked."""

    accuracy: Estimate
    counts: dict[str, int]
    flip_rate: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# A prompt's credit, and what of it is counted.
Rating = tuple[str, float, list[str]]


def measure_accuracy(rows: Iterable[ScoredAnswers]) -> dict[str, Accuracy]:
    """By subset, in the order of their first rows."""
    by_subset: dict[str, list[ScoredAnswers]] = {}
    for row in rows:
        by_subset.setdefault(row.subset, []).append(row)
    return {name: _measure_subset(own) for name, own in by_subset.items()}


def average_subsets(subsets: Mapping[str, Accuracy]) -> Estimate:
    """The mean of the subsets' means. Subsets are independent, so their errors add as squares.

    A subset of one prompt has no interval, and then the mean has none.
    """
    estimates = [one.accuracy for one in subsets.values()]
    prompts = sum(one.n for one in estimates)
    means = [one.mean for one in estimates if one.mean is not None]
    if not means or len(means) < len(estimates):
        return Estimate(None, None, None, prompts)
    centre = sum(means) / len(means)
    ends = [
        (one.mean - one.low, one.high - one.mean)
        for one in estimates
        if one.mean is not None and one.low is not None and one.high is not None
    ]
    if len(ends) < len(estimates):
        return Estimate(centre, None, None, prompts)
    below, above = (math.hypot(*errors) / len(means) for errors in zip(*ends, strict=True))
    return Estimate(centre, centre - below, centre + above, prompts)


def _measure_subset(rows: list[ScoredAnswers]) -> Accuracy:
    complete = [row for row in rows if row.is_complete]
    credits: dict[str, list[float]] = {}
    counts = Counter[str]()
    for prompt, credit, kinds in _rate_rows(complete):
        credits.setdefault(prompt, []).append(credit)
        counts.update(kinds)
    if failed := len(rows) - len(complete):
        counts["failed"] = failed
    means = [sum(each) / len(each) for each in credits.values()]
    flips = mean(row.flip_rate for row in complete if row.flip_rate is not None)
    return Accuracy(_estimate_accuracy(means), dict(counts), flips)


def _estimate_accuracy(credits: list[float]) -> Estimate:
    """Where all prompts are right, or all wrong, no resample differs: the exact binomial interval.

    At an accuracy of `low`, n of n prompts are right with a chance of low^n.
    """
    found, n = estimate_mean(credits, BOOTSTRAP), len(credits)
    reached = ((1 - BOOTSTRAP.level) / 2) ** (1 / max(n, 1))
    if n > 1 and {*credits} == {1.0}:
        return replace(found, low=reached)
    if n > 1 and {*credits} == {0.0}:
        return replace(found, high=1 - reached)
    return found


def _rate_rows(rows: list[ScoredAnswers]) -> Iterator[Rating]:
    ties: dict[str, dict[str, ScoredAnswers]] = {}
    for row in rows:
        if row.tie:
            ties.setdefault(row.tie[1], {})[row.tie[0]] = row
        else:
            yield row.prompt, row.credit, [{0.0: "wrong", 1.0: "right"}.get(row.credit, "shared")]
    for number, pair in ties.items():
        if pair.keys() == {"ref", "tied"}:  # neither has failed
            yield _rate_ties(number, pair["ref"], pair["tied"])


def _rate_ties(number: str, ref: ScoredAnswers, tied: ScoredAnswers) -> Rating:
    smaller = min(ref.gap, tied.gap)
    tests = {
        "ref right": (0.3, ref.gap > 0),
        "tied right": (0.3, tied.gap > 0),
        "gap above spread": (0.2, tied.gap > tied.spread),
        "smaller gap above spread": (0.2, smaller > tied.spread),
    }
    credit = sum(weight for weight, holds in tests.values() if holds)
    credit += 0.01 * _rate_margin(smaller, tied.spread)
    return number, credit, [name for name, (_, holds) in tests.items() if holds]


def _rate_margin(gap: float, spread: float) -> float:
    """tanh(gap ÷ spread − 1), and its limit where the right answers score alike."""
    if spread > 0:
        return math.tanh(gap / spread - 1)
    return math.copysign(1.0, gap) if gap else 0.0


def _drop_none(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]
