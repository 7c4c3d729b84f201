"""How far verdicts on pairs agree with those of annotators, and their bias by position and length.

A verdict is 1 where the first answer is better, 0 where the second is, 0.5 for a tie.

Agreement is measured on pairs that annotators decided: right is 1, a tie 0.5, wrong 0. Its unit is
the prompt: pairs of one prompt are not independent, so they are averaged first and the interval is
over prompts. Other publications count pair by pair, so that figure is given too.
Exact agreement and κ use every pair, one by one, with three verdicts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

from pipeline.data.label_files import find_majority
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    Difference,
    Estimate,
    estimate_difference,
    estimate_mean,
)

# By how much the preferred answer is longer than the other, as a share of the longer one.
LENGTHS = {
    "much shorter": (-1.0, -0.5),
    "shorter": (-0.5, -0.1),
    "about as long": (-0.1, 0.1),
    "longer": (0.1, 0.5),
    "much longer": (0.5, 1.01),
}
BOOTSTRAP = BootstrapConfig(level=0.95, resamples=9999, seed=0)


@dataclass(frozen=True)
class LabelledPair:
    """Each annotator's vote on one pair."""

    prompt: str
    votes: Sequence[float]
    first: int  # lengths
    second: int

    @cached_property
    def verdict(self) -> float | None:
        """The annotators' joint verdict; None where they are split."""
        return find_majority(self.votes)

    @property
    def longer(self) -> float:
        """The verdict of a judge that sees lengths only."""
        return 0.5 if self.first == self.second else float(self.first > self.second)

    @property
    def preferred_length(self) -> float:
        gap = (self.first - self.second) / max(self.first, self.second, 1)
        return gap if self.verdict == 1 else -gap


PairsByKey = Mapping[str, LabelledPair]
VerdictsByKey = Mapping[str, float | None]


@dataclass(frozen=True)
class Calibration:
    agreement: Estimate  # by prompt
    pair_agreement: float | None  # over all decided pairs alike
    decided: int  # pairs that annotators decided and that have a verdict here
    exact: float | None
    kappa: float | None
    ties: float | None
    failed: int
    prefers_first: float | None
    prefers_longer: float | None
    order_flips: float | None  # how often its verdict changed when the answers changed places
    by_length: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate(
    pairs: PairsByKey, verdicts: VerdictsByKey, swapped: VerdictsByKey | None = None
) -> Calibration:
    """`swapped`: verdicts with the answers in the other order, expressed in the first order."""
    known = {key: verdict for key, verdict in verdicts.items() if verdict is not None}
    both = [
        (pair.verdict, known[key])
        for key, pair in pairs.items()
        if key in known and pair.verdict is not None
    ]
    credits = list_credits_by_prompt(pairs, known)
    decided = [credit for each in credits.values() for credit in each]
    flips = None
    if swapped is not None:
        flips = mean(swapped[key] != own for key, own in known.items() if key in swapped)
    return Calibration(
        agreement=estimate_mean([sum(each) / len(each) for each in credits.values()], BOOTSTRAP),
        pair_agreement=mean(decided),
        decided=len(decided),
        exact=mean(joint == own for joint, own in both),
        kappa=cohen_kappa(both),
        ties=mean(own == 0.5 for own in known.values()),
        failed=len(pairs) - len(known),
        prefers_first=mean(own for own in known.values() if own != 0.5),
        prefers_longer=share_preferring_longer(pairs, known),
        order_flips=flips,
        by_length=agreement_by_length(pairs, known),
    )


def calibrate_annotators(pairs: PairsByKey) -> Calibration | None:
    """Each annotator against each other one; None where no two annotators judged the same pair."""
    couples = {
        f"{key} {at}": (pair, two)
        for key, pair in pairs.items()
        for at, two in enumerate(permutations(pair.votes, 2))
    }
    if not couples:
        return None
    judged = {
        key: LabelledPair(pair.prompt, two[:1], pair.first, pair.second)
        for key, (pair, two) in couples.items()
    }
    return calibrate(judged, {key: two[1] for key, (_, two) in couples.items()})


def estimate_gain(
    pairs: PairsByKey, verdicts: VerdictsByKey, baseline: VerdictsByKey
) -> Difference:
    """By how much the agreement exceeds a baseline's, prompt by prompt."""
    own, other = mean_credit_by_prompt(pairs, verdicts), mean_credit_by_prompt(pairs, baseline)
    return estimate_difference(own, other, len(other), BOOTSTRAP)


def mean_credit_by_prompt(pairs: PairsByKey, verdicts: VerdictsByKey) -> dict[str, float]:
    by_prompt = list_credits_by_prompt(pairs, verdicts)
    return {prompt: sum(credits) / len(credits) for prompt, credits in by_prompt.items()}


def list_credits_by_prompt(pairs: PairsByKey, verdicts: VerdictsByKey) -> dict[str, list[float]]:
    """One credit for each pair that annotators decided and that has a verdict."""
    by_prompt: dict[str, list[float]] = {}
    for key, pair in pairs.items():
        verdict = verdicts.get(key)
        if pair.verdict is not None and pair.verdict != 0.5 and verdict is not None:
            by_prompt.setdefault(pair.prompt, []).append(1 - abs(pair.verdict - verdict))
    return by_prompt


def share_preferring_longer(pairs: PairsByKey, verdicts: VerdictsByKey) -> float | None:
    """Of the decisions between answers of different length, the share for the longer one."""
    both = [(pairs[key].longer, own) for key, own in verdicts.items()]
    return mean(own == longer for longer, own in both if longer != 0.5 and own not in (0.5, None))


def agreement_by_length(
    pairs: PairsByKey, verdicts: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Agreement by how long the preferred answer is against the other."""
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


def cohen_kappa(both: Sequence[tuple[float, float]]) -> float | None:
    """How far exact agreement exceeds that of two independent judges with the same frequencies."""
    if not both:
        return None
    observed = sum(a == b for a, b in both) / len(both)
    chance = sum(
        sum(a == value for a, _ in both) * sum(b == value for _, b in both) / len(both) ** 2
        for value in (0.0, 0.5, 1.0)
    )
    return None if chance == 1 else (observed - chance) / (1 - chance)


def fleiss_kappa(votes: Sequence[Sequence[float]]) -> float | None:
    """How far the agreement of several judges exceeds chance; each row has a prompt's verdicts.

    Of one judge there is none, nor where all verdicts are the same.
    """
    judges = len(votes[0]) if votes else 0
    if judges < 2:
        return None
    counts = [[row.count(value) for value in (0.0, 0.5, 1.0)] for row in map(tuple, votes)]
    agreed = [sum(n * (n - 1) for n in row) / (judges * (judges - 1)) for row in counts]
    observed = sum(agreed) / len(votes)
    shares = [sum(column) / (judges * len(votes)) for column in zip(*counts, strict=True)]
    chance = sum(share**2 for share in shares)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
