"""Symptoms that the literature warns of, found in metrics.jsonl after training.

A pure function over one table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from statistics import fmean
from typing import Any

from pipeline.training.monitoring.early_stopping import (
    METRIC_KEYS,
    SCORE,
    TOKENS,
    merge_evaluations,
)

Row = dict[str, Any]
MANY_EQUAL = 0.5  # of the groups of answers
MIN_STEPS = 8  # with fewer logged steps a curve shows nothing


@dataclass(frozen=True, slots=True)
class Symptom:
    name: str
    is_seen: Callable[[Sequence[Row]], bool]
    cause: str
    remedy: str  # `{beta}` is a knob of the training, and `{}` what chooses its objective


MORE_STEPS = "more pairs, a smaller {batch}, more {epochs}"
# The log does not show these two: the config and the weights do.
FEW_STEPS = Symptom(
    "the steps are too few for the warm-up",
    lambda rows: False,
    "the warm-up takes at least twice its share of the steps, so many are below the full rate",
    f"give more steps: {MORE_STEPS}",
)
UNCHANGED = Symptom(
    "the published weights are those that training started from, byte for byte",
    lambda rows: False,
    "every step is rounded away in the published precision, or the pairs gave no gradient",
    f"give more steps ({MORE_STEPS}) or a higher {{learning_rate}}. Where {{dtype}} is "
    "bfloat16, {dtype}=float32 rounds far fewer steps away",
)


def find_symptoms(rows: Sequence[Row]) -> list[Symptom]:
    equal = _find_equal_rewards(rows)
    return [*filter(None, [equal]), *(symptom for symptom in SYMPTOMS if symptom.is_seen(rows))]


def _find_equal_rewards(rows: Sequence[Row]) -> Symptom | None:
    """Of online training: most prompts' answers have one reward, and so no advantage."""
    shares = _read_curve(rows, "frac_reward_zero_std")
    if not shares or fmean(shares) < MANY_EQUAL:
        return None
    return Symptom(
        f"nothing to learn here: {fmean(shares):.0%} of the groups have equal rewards",
        lambda rows: True,
        "the answers to a prompt all score alike: it is too easy or too hard, or the scorer hardly"
        " tells answers apart",
        "give prompts of another difficulty, a finer pair.scorer, or more and warmer answers"
        " (sample.settings.NAME.n and temperature)",
    )


def _answers_are_cut(rows: Sequence[Row]) -> bool:
    """Of online training: in the last quarter most sampled answers end at their limit."""
    cut = _read_curve(rows, "completions/clipped_ratio")
    return len(cut) >= MIN_STEPS and fmean(cut[-len(cut) // 4 :]) > 0.5


def _is_stuck(rows: Sequence[Row]) -> bool:
    """The last quarter of the losses is at ln 2, where a policy without a margin has them.

    A loss that only passes through ln 2 has a margin there.
    """
    loss, margin = _read_curve(rows, "loss"), _read_curve(rows, "rewards/margins")
    if len(loss) < MIN_STEPS or abs(fmean(loss[-len(loss) // 4 :]) - log(2)) >= 0.005:
        return False
    return not margin or abs(fmean(margin[-len(margin) // 4 :])) <= 0.05


def _both_rewards_rise(rows: Sequence[Row]) -> bool:
    """Both rise by similar amounts. A rejected side that rises far less is learned to be worse."""
    chosen = _measure_gain(_read_curve(rows, "rewards/chosen"))
    rejected = _measure_gain(_read_curve(rows, "rewards/rejected"))
    return min(chosen, rejected) > 0.05 and rejected > chosen / 3


def _margin_outgrows_score(rows: Sequence[Row]) -> bool:
    """The margin grows while the score is past its best and does not rise again.

    The margin has to grow at three evaluations in a row, and at the last one by at least half as
    much as at the first.
    """
    margin = METRIC_KEYS["margin"]
    recent = [row for row in merge_evaluations(list(rows)) if SCORE in row and margin in row][-4:]
    margins, scores = [row[margin] for row in recent], [row[SCORE] for row in recent]
    gains = [after - before for before, after in pairwise(margins)]
    grows = len(recent) == 4 and min(gains) > 0 and gains[-1] >= gains[0] / 2
    return grows and _falls(scores)


def _falls(scores: Sequence[float]) -> bool:
    return scores[-1] < max(scores) - 0.01 and scores[-1] <= scores[-2]


def _loss_swings(rows: Sequence[Row]) -> bool:
    """In the second half the loss varies from step to step by over a third of its mean.

    Differences of neighbours measure this, so a steady fall does not count.
    """
    loss = _read_curve(rows, "loss")
    late = loss[len(loss) // 2 :]
    if len(loss) < MIN_STEPS:
        return False
    spread = sqrt(fmean((after - before) ** 2 for before, after in pairwise(late)) / 2)
    return fmean(late) > 0.1 and spread > fmean(late) / 3


def _answers_grow(rows: Sequence[Row]) -> bool:
    tokens = [row[TOKENS] for row in merge_evaluations(list(rows)) if TOKENS in row]
    return len(tokens) > 1 and tokens[-1] > 1.5 * tokens[0]


def _read_curve(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _measure_gain(curve: list[float]) -> float:
    """The mean of the last third less the mean of the first third."""
    third = len(curve) // 3
    return fmean(curve[-third:]) - fmean(curve[:third]) if len(curve) >= MIN_STEPS else 0.0


SYMPTOMS = (
    Symptom(
        "the loss stays at 0.693",
        _is_stuck,
        "the policy hardly moves, or nothing distinguishes chosen from rejected",
        "raise {learning_rate}; check the margins of the pairs (pair.filters.min_margin) and "
        "pair.scorer",
    ),
    Symptom(
        "chosen and rejected rewards both rise",
        _both_rewards_rise,
        "mostly what both sides share is learned, such as style or format, and less their "
        "difference",
        "give pairs that differ in what counts (pair=best_worst, pair.filters.min_margin); where "
        "the loss has a reference, raise {beta}",
    ),
    Symptom(
        "the margin grows without plateau while the dev score falls",
        _margin_outgrows_score,
        "the reward is over-optimised: the pairs are separated ever better and generated answers "
        "score worse",
        "lower {learning_rate}, raise {beta} where the loss has a reference, or stop in "
        "time: {guards.stop_on}=score",
    ),
    Symptom(
        "the loss swings",
        _loss_swings,
        "steps are too large, or each is of too few pairs",
        "lower {learning_rate}, raise {batch} or {warmup}",
    ),
    Symptom(
        "most sampled answers are cut at limits.completion",
        _answers_are_cut,
        "they are scored and trained without their end",
        "raise limits.completion, or leave them out of the loss:"
        " {args.mask_truncated_completions}=true",
    ),
    Symptom(
        "answers have grown past 1.5 times their length",
        _answers_grow,
        "often chosen answers are longer than rejected ones, and length is what is learned",
        "pair=length_matched, {}=sigmoid_norm or {}=ld_dpo; see the length-adjusted win "
        "rates in the report",
    ),
)
