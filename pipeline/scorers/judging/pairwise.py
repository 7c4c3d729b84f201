"""Two answers to one prompt, judged in both orders. A disagreement between the orders is a tie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import EQUAL_ANSWERS
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.parsing import Verdict
from pipeline.scorers.judging.template import PAIRWISE_FIELDS as PAIRWISE_FIELDS

LABELS = ("A", "B", "TIE")
Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class Comparison:
    question: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class OrderVerdict:
    """The verdict in one order: who won, and the probability that `a` is better.

    A tie counts half. A failed one has neither; `detail` is the reason.
    """

    winner: Winner | None
    probability: float | None
    model: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """The verdicts in both orders. `ab`: a was shown first; `ba`: b was."""

    ab: OrderVerdict
    ba: OrderVerdict

    @property
    def fault(self) -> str:
        return next((one.detail for one in (self.ab, self.ba) if one.winner is None), "")

    @property
    def is_judged(self) -> bool:
        """Whether a judge was asked. Equal answers are a tie without one."""
        return self.ab.detail != EQUAL_ANSWERS

    @property
    def is_flipped(self) -> bool:
        return self.ab.winner != self.ba.winner

    @property
    def probability(self) -> float | None:
        """The probability that `a` is better: one half where the orders disagree."""
        if self.ab.probability is None or self.ba.probability is None:
            return None
        return 0.5 if self.is_flipped else (self.ab.probability + self.ba.probability) / 2


def judge_comparisons(judge: CachedJudge, comparisons: Sequence[Comparison]) -> list[PairVerdict]:
    """A verdict for each comparison, in their order.

    Equal answers are a tie, and no judge is asked.
    """
    differing = [comparison for comparison in comparisons if comparison.a != comparison.b]
    requests = [
        judge.template.build_request(
            {"question": comparison.question, "first": first, "second": second}, LABELS, order
        )
        for comparison in differing
        for first, second, order in (
            (comparison.a, comparison.b, _name_order(comparison)),
            (comparison.b, comparison.a, _name_order(comparison, reverse=True)),
        )
    ]
    verdicts = iter(judge.get_verdicts(requests))
    equal = OrderVerdict("tie", 0.5, detail=EQUAL_ANSWERS)
    pairs = []
    for comparison in comparisons:
        if comparison.a == comparison.b:
            pairs.append(PairVerdict(equal, equal))
        else:
            ab = _orient_verdict(next(verdicts), "a", "b")
            ba = _orient_verdict(next(verdicts), "b", "a")
            pairs.append(PairVerdict(ab, ba))
    return pairs


def _name_order(comparison: Comparison, reverse: bool = False) -> str:
    """`forth` is the same order of texts whichever of the two is called a."""
    return "forth" if (comparison.a < comparison.b) is not reverse else "back"


def _orient_verdict(verdict: Verdict, first: Winner, second: Winner) -> OrderVerdict:
    """`first` and `second` are the answers that the judge saw as A and B."""
    if verdict.fault:
        return OrderVerdict(None, None, verdict.model, verdict.fault)
    tie = verdict.probabilities.get("TIE", 0.0)
    first_wins = verdict.probabilities.get("A", 0.0) + tie / 2
    winner: Winner = {"A": first, "B": second}.get(verdict.label or "", "tie")
    return OrderVerdict(winner, first_wins if first == "a" else 1 - first_wins, verdict.model)
