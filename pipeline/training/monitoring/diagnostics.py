"""What the literature warns of, read from metrics.jsonl after training: a pure function and one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from statistics import fmean
from typing import Any

from pipeline.training.monitoring.early_stopping import COLUMN, SCORE, TOKENS, looks

Row = dict[str, Any]
LEAST = 8  # logged steps, below which a curve says nothing


@dataclass(frozen=True, slots=True)
class Symptom:
    name: str
    seen: Callable[[Sequence[Row]], bool]
    cause: str
    knob: str


MORE_STEPS = "more pairs, a smaller train.batch, more train.epochs"
# Two that the log does not show: the config and the weights do.
FEW_STEPS = Symptom(
    "the steps are too few for the warm-up",
    lambda rows: False,
    "the rate climbs for most of the training, which has hardly begun when it ends",
    f"give more steps: {MORE_STEPS}",
)
UNCHANGED = Symptom(
    "the published weights are those that training started from, byte for byte",
    lambda rows: False,
    "no step was large enough to be seen in the published precision, or the pairs gave no gradient",
    f"give more steps ({MORE_STEPS}) or a higher train.learning_rate; train.dtype=float32 rounds no small step away",
)


def symptoms(rows: Sequence[Row]) -> list[Symptom]:
    return [symptom for symptom in TABLE if symptom.seen(rows)]


def _stuck(rows: Sequence[Row]) -> bool:
    """The last quarter of the losses is where a policy without any margin has them; another loss may pass there."""
    loss, margin = _curve(rows, "loss"), _curve(rows, "rewards/margins")
    parted = margin and abs(fmean(margin[-len(margin) // 4 :])) > 0.05
    return (
        len(loss) >= LEAST and abs(fmean(loss[-len(loss) // 4 :]) - log(2)) < 0.005 and not parted
    )


def _both_rise(rows: Sequence[Row]) -> bool:
    """Together: where the rejected one rises far less than the chosen one, they are told apart."""
    chosen, rejected = (_gain(_curve(rows, f"rewards/{side}")) for side in ("chosen", "rejected"))
    return min(chosen, rejected) > 0.05 and rejected > chosen / 3


def _margin_without_gain(rows: Sequence[Row]) -> bool:
    """Three looks in a row widen the margin, the last one by no less than half the first, and the score is past its
    best and does not rise again."""
    seen = [look for look in looks(list(rows)) if SCORE in look and COLUMN["margin"] in look][-4:]
    margins, scores = [look[COLUMN["margin"]] for look in seen], [look[SCORE] for look in seen]
    grows = [b - a for a, b in pairwise(margins)]
    return len(seen) == 4 and min(grows) > 0 and grows[-1] >= grows[0] / 2 and _falls(scores)


def _falls(scores: Sequence[float]) -> bool:
    return scores[-1] < max(scores) - 0.01 and scores[-1] <= scores[-2]


def _swings(rows: Sequence[Row]) -> bool:
    """In the second half the loss spreads from step to step by more than a third of what it is: a fall is no swing."""
    loss = _curve(rows, "loss")
    late = loss[len(loss) // 2 :]
    if len(loss) < LEAST:
        return False
    spread = sqrt(fmean((after - before) ** 2 for before, after in pairwise(late)) / 2)
    return fmean(late) > 0.1 and spread > fmean(late) / 3


def _longer(rows: Sequence[Row]) -> bool:
    tokens = [look[TOKENS] for look in looks(list(rows)) if TOKENS in look]
    return len(tokens) > 1 and tokens[-1] > 1.5 * tokens[0]


def _curve(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _gain(curve: list[float]) -> float:
    """From its first third to its last."""
    third = len(curve) // 3
    return fmean(curve[-third:]) - fmean(curve[:third]) if len(curve) >= LEAST else 0.0


TABLE = (
    Symptom(
        "the loss stays at 0.693",
        _stuck,
        "the policy hardly moves, or nothing tells chosen from rejected",
        "raise train.learning_rate; look at the margins of the pairs (pair.filters.min_margin) and at pair.scorer",
    ),
    Symptom(
        "chosen and rejected rewards both rise",
        _both_rise,
        "mostly what both sides share is learned, such as style or format, and less what sets them apart",
        "give pairs that differ in what counts (pair=best_worst, pair.filters.min_margin); where a reference holds it,"
        " raise train.beta",
    ),
    Symptom(
        "the margin grows without plateau while the dev score falls",
        _margin_without_gain,
        "the reward is over-optimised: pairs are told apart ever better and own answers score worse",
        "lower train.learning_rate, raise train.beta where a reference holds it, or stop in time:"
        " train.guards.stop_on=score",
    ),
    Symptom(
        "the loss swings",
        _swings,
        "steps are too large, or each is of too few pairs",
        "lower train.learning_rate, raise train.batch or train.warmup",
    ),
    Symptom(
        "answers have grown past 1.5 times their length",
        _longer,
        "often chosen answers are longer than rejected ones, and length is what is learned",
        "pair=length_matched, train=sigmoid_norm or train=ld_dpo; see the length-adjusted win rates in the report",
    ),
)
