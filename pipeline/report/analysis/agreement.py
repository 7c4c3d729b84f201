"""How far verdicts on pairs agree with people's, and what bends them: position and length.

A verdict is 1 where the first answer is better, 0 where the second is, 0.5 for a tie. Agreement is asked where people
decided: right is 1, a tie 0.5, wrong 0. Its unit is the prompt, whose pairs are averaged first: they are no evidence
of their own, and its interval is over prompts. Others count pair by pair, so that figure stands beside it. Exact
agreement and κ are asked everywhere, pair by pair, and know three verdicts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    Difference,
    Estimate,
    difference,
    estimate,
)

# By how much the answer that people prefer is longer than the other, as a share of the longer one.
LENGTHS = {
    "much shorter": (-1.0, -0.5),
    "shorter": (-0.5, -0.1),
    "about as long": (-0.1, 0.1),
    "longer": (0.1, 0.5),
    "much longer": (0.5, 1.01),
}
BOOTSTRAP = BootstrapConfig(level=0.95, resamples=9999, seed=0)


@dataclass(frozen=True)
class Pair:
    """What people said of one pair, all told: None where they are split."""

    asked: str
    verdict: float | None
    votes: Sequence[float]
    first: int  # lengths
    second: int

    @property
    def longer(self) -> float:
        """The verdict of one who knows lengths alone."""
        return 0.5 if self.first == self.second else float(self.first > self.second)

    @property
    def preferred_length(self) -> float:
        gap = (self.first - self.second) / max(self.first, self.second, 1)
        return gap if self.verdict == 1 else -gap


Pairs = Mapping[str, Pair]
Verdicts = Mapping[str, float | None]


@dataclass(frozen=True)
class Calibration:
    agreement: Estimate  # by prompt
    pair_agreement: float | None  # over all decided pairs alike
    decided: int  # pairs that people decided and that have a verdict here
    exact: float | None
    kappa: float | None
    ties: float | None
    failed: int
    prefers_first: float | None
    prefers_longer: float | None
    order_flips: float | None  # how often its verdict changed when the two answers changed places
    by_length: dict[str, dict[str, Any]]

    def told(self) -> dict[str, Any]:
        return asdict(self)


def calibration(pairs: Pairs, verdicts: Verdicts, turned: Verdicts | None = None) -> Calibration:
    """`turned` are the verdicts of a second asking with the answers in the other order, said of the first order."""
    given = {key: verdict for key, verdict in verdicts.items() if verdict is not None}
    both = [
        (pair.verdict, given[key])
        for key, pair in pairs.items()
        if key in given and pair.verdict is not None
    ]
    credits = credits_by_prompt(pairs, given)
    decided = [credit for each in credits.values() for credit in each]
    return Calibration(
        agreement=estimate([sum(each) / len(each) for each in credits.values()], BOOTSTRAP),
        pair_agreement=mean(decided),
        decided=len(decided),
        exact=mean(people == own for people, own in both),
        kappa=kappa(both),
        ties=mean(own == 0.5 for own in given.values()),
        failed=len(pairs) - len(given),
        prefers_first=mean(own for own in given.values() if own != 0.5),
        prefers_longer=prefers_longer(pairs, given),
        order_flips=None
        if turned is None
        else mean(turned[key] != own for key, own in given.items() if key in turned),
        by_length=by_length(pairs, given),
    )


def people_s_own(pairs: Pairs) -> Calibration | None:
    """Each annotator against each other as if one were the scorer; None where nobody judged what another did."""
    couples = {
        f"{key} {at}": (pair, two)
        for key, pair in pairs.items()
        for at, two in enumerate(permutations(pair.votes, 2))
    }
    if not couples:
        return None
    asked = {
        key: Pair(pair.asked, two[0], (), pair.first, pair.second)
        for key, (pair, two) in couples.items()
    }
    return calibration(asked, {key: two[1] for key, (_, two) in couples.items()})


def gain(pairs: Pairs, verdicts: Verdicts, baseline: Verdicts) -> Difference:
    """By how much the agreement is above a baseline's, prompt by prompt."""
    own, other = credit_by_prompt(pairs, verdicts), credit_by_prompt(pairs, baseline)
    return difference(own, other, len(other), BOOTSTRAP)


def credit_by_prompt(pairs: Pairs, verdicts: Verdicts) -> dict[str, float]:
    return {
        asked: sum(credits) / len(credits)
        for asked, credits in credits_by_prompt(pairs, verdicts).items()
    }


def credits_by_prompt(pairs: Pairs, verdicts: Verdicts) -> dict[str, list[float]]:
    """A prompt's credits, one for each pair that people decided and that has a verdict."""
    found: dict[str, list[float]] = {}
    for key, pair in pairs.items():
        verdict = verdicts.get(key)
        if pair.verdict is not None and pair.verdict != 0.5 and verdict is not None:
            found.setdefault(pair.asked, []).append(1 - abs(pair.verdict - verdict))
    return found


def prefers_longer(pairs: Pairs, verdicts: Verdicts) -> float | None:
    """Of the decisions between answers of unlike length, the share for the longer one."""
    told = [(pairs[key].longer, own) for key, own in verdicts.items()]
    return mean(own == longer for longer, own in told if longer != 0.5 and own not in (0.5, None))


def by_length(pairs: Pairs, verdicts: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Agreement where the answer that people prefer is the shorter one, up to where it is the longer one."""
    decided = {
        key: pair
        for key, pair in pairs.items()
        if pair.verdict not in (0.5, None) and key in verdicts
    }
    table = {}
    for name, (low, high) in LENGTHS.items():
        here = {key: pair for key, pair in decided.items() if low <= pair.preferred_length < high}
        credits = [
            1 - abs(pair.verdict - verdicts[key])
            for key, pair in here.items()
            if pair.verdict is not None
        ]
        table[name] = {"pairs": len(here), "agreement": mean(credits)}
    return table


def kappa(both: Sequence[tuple[float, float]]) -> float | None:
    """Cohen's: how far exact agreement is above what two who know nothing of each other would have."""
    if not both:
        return None
    seen = sum(a == b for a, b in both) / len(both)
    chance = sum(
        sum(a == value for a, _ in both) * sum(b == value for _, b in both) / len(both) ** 2
        for value in (0.0, 0.5, 1.0)
    )
    return None if chance == 1 else (seen - chance) / (1 - chance)


def mean(values: Iterable[float]) -> float | None:
    told = list(values)
    return sum(told) / len(told) if told else None
