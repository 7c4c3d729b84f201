"""Two answers to one prompt, judged in both orders: a disagreement between the orders is a tie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.artifacts import EQUAL_ANSWERS
from pipeline.scorers.judging.cached_judge import CachedJudge
from pipeline.scorers.judging.parsing import Reading
from pipeline.scorers.judging.template import NEEDS as NEEDS

LABELS = ("A", "B", "TIE")
Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class Bout:
    question: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Side:
    """One order's verdict: who won, and how likely `a` is the better one (a tie is half). A failed one has neither,
    and says why."""

    winner: Winner | None
    probability: float | None
    model: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ab`: a stood first; `ba`: b did."""

    ab: Side
    ba: Side

    @property
    def fault(self) -> str:
        return next((side.detail for side in (self.ab, self.ba) if side.winner is None), "")

    @property
    def asked(self) -> bool:
        return self.ab.detail != EQUAL_ANSWERS

    @property
    def flipped(self) -> bool:
        return self.ab.winner != self.ba.winner

    @property
    def probability(self) -> float | None:
        """That a is the better one: a half where the orders disagree."""
        if self.ab.probability is None or self.ba.probability is None:
            return None
        return 0.5 if self.flipped else (self.ab.probability + self.ba.probability) / 2


def fought(court: CachedJudge, bouts: Sequence[Bout]) -> list[Verdict]:
    """Every bout's verdict, in their order. Equal answers are a tie that nobody is asked about."""
    equal = Side("tie", 0.5, detail=EQUAL_ANSWERS)
    differ = [bout for bout in bouts if bout.a != bout.b]
    asked = [
        court.wording.question(
            {"question": bout.question, "first": one, "second": two}, LABELS, order
        )
        for bout in differ
        for one, two, order in (
            (bout.a, bout.b, _order(bout)),
            (bout.b, bout.a, _order(bout, back=True)),
        )
    ]
    readings = iter(court.readings(asked))
    verdicts = []
    for bout in bouts:
        if bout.a == bout.b:
            verdicts.append(Verdict(equal, equal))
        else:
            verdicts.append(
                Verdict(_side(next(readings), "a", "b"), _side(next(readings), "b", "a"))
            )
    return verdicts


def _order(bout: Bout, back: bool = False) -> str:
    """`forth` is the same whichever of the two is called a."""
    return "forth" if (bout.a < bout.b) is not back else "back"


def _side(reading: Reading, first: Winner, second: Winner) -> Side:
    if reading.fault:
        return Side(None, None, reading.model, reading.fault)
    ahead = reading.chances.get("A", 0.0) + reading.chances.get("TIE", 0.0) / 2
    winner: Winner = {"A": first, "B": second}.get(reading.verdict or "", "tie")
    return Side(winner, ahead if first == "a" else 1 - ahead, reading.model)
