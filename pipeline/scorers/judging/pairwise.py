"""Two answers to one prompt, judged in both orders. A disagreement between the orders is a tie."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import EQUAL_ANSWERS
from pipeline.scorers.judging import JudgeRequest
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.parsing import Verdict
from pipeline.scorers.judging.template import PAIRWISE_FIELDS as PAIRWISE_FIELDS

LABELS = {3: ("A", "B", "TIE"), 5: ("A>>B", "A>B", "A=B", "B>A", "B>>A")}  # by judge.levels
MEANINGS = {
    3: "A, the first answer is better; B, the second is; TIE, neither is",
    5: "A>>B, the first answer is much better; A>B, it is slightly better; A=B, neither is better;"
    " B>A, the second answer is slightly better; B>>A, it is much better",
}
# Who wins by a label, and as how many wins it counts: a much better answer as three (Arena-Hard).
STRONG_WEIGHT = 3
BEST = {"A": "A", "A>B": "A", "A>>B": "A", "B": "B", "B>A": "B", "B>>A": "B"}
Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class Comparison:
    question: str
    a: str
    b: str
    reference: str | None = None  # None: it is judged without one


@dataclass(frozen=True, slots=True)
class OrderVerdict:
    """The verdict in one order: who won, and the probability that `a` is better.

    A tie counts half. A failed one has neither; `detail` is the reason. `weight`: as how many
    verdicts it counts.
    """

    winner: Winner | None
    probability: float | None
    model: str = ""
    detail: str = ""
    weight: int = 1


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

    @property
    def weight(self) -> float:
        """As how many verdicts it counts: a tie by disagreement as one."""
        return 1.0 if self.is_flipped else (self.ab.weight + self.ba.weight) / 2


def judge_comparisons(
    judge: CachedJudge, comparisons: Sequence[Comparison], levels: int = 3
) -> list[PairVerdict]:
    """A verdict for each comparison, in their order.

    Equal answers are a tie, and no judge is asked.
    """
    differing = [comparison for comparison in comparisons if comparison.a != comparison.b]
    requests = [
        request
        for comparison in differing
        for request in _build_requests(judge, comparison, levels)
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


def _build_requests(
    judge: CachedJudge, comparison: Comparison, levels: int
) -> Iterator[JudgeRequest]:
    """Both orders, a first."""
    for first, second, order in (
        (comparison.a, comparison.b, _name_order(comparison)),
        (comparison.b, comparison.a, _name_order(comparison, reverse=True)),
    ):
        judged = {"question": comparison.question, "first": first, "second": second}
        yield judge.build_request(
            judged, comparison.reference, LABELS[levels], order, labels=MEANINGS[levels]
        )


def _name_order(comparison: Comparison, reverse: bool = False) -> str:
    """`forth` is the same order of texts whichever of the two is called a."""
    return "forth" if (comparison.a < comparison.b) is not reverse else "back"


def _orient_verdict(verdict: Verdict, first: Winner, second: Winner) -> OrderVerdict:
    """`first` and `second` are the answers that the judge saw as A and B."""
    if verdict.fault:
        return OrderVerdict(None, None, verdict.model, verdict.fault)
    sums = {"A": 0.0, "B": 0.0, "TIE": 0.0}
    for label, probability in verdict.probabilities.items():
        sums[BEST.get(label, "TIE")] += probability
    first_wins = sums["A"] + sums["TIE"] / 2
    label = verdict.label or ""
    winner: Winner = {"A": first, "B": second}.get(BEST.get(label, ""), "tie")
    probability = first_wins if first == "a" else 1 - first_wins
    weight = STRONG_WEIGHT if ">>" in label else 1
    return OrderVerdict(winner, probability, verdict.model, weight=weight)
