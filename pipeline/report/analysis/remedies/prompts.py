"""The prompts: a test that is too small for the effect, and prompts that were dropped."""

from collections.abc import Iterator
from math import ceil

from pipeline.report.analysis.remedies.finished_run import Advice, FinishedRun
from pipeline.report.analysis.verdict import FAR_NATS, MIN_PROMPTS, NEAR_NATS
from pipeline.report.formatting import (
    ReportRow,
    format_interval,
    format_number,
    format_share,
    format_signed,
    measure_reach,
)

MANY_DROPPED = 0.2  # prompts that decontamination, duplicates or their length cost
MOST_PROMPTS = 10  # times as many test prompts as there are: more is not worth advising


def check_power(run: FinishedRun) -> Iterator[Advice]:
    """A difference that this many prompts cannot show, and how many could."""
    gap, model = run.gap, run.model
    if model and abs(model["kl"]["mean"] or FAR_NATS) < NEAR_NATS:
        return  # it hardly moved, so there is little to detect
    if (
        gap is None
        or gap["mean"] is None
        or gap["low"] is None
        or not gap["low"] <= 0 <= gap["high"]
    ):
        return
    knob = f"prompts.split.{run.split}"
    if gap["n"] < MIN_PROMPTS:
        yield Advice(
            f"{gap['n']} {run.split} prompts with scores are too few for a verdict",
            f"{knob}={MIN_PROMPTS * 10}: a verdict needs {MIN_PROMPTS}, a small effect hundreds",
        )
        return
    too_small = (
        f"the difference of {format_signed(gap['mean'])}"
        f" ({format_interval(gap, format_signed)}) is too small for"
    )
    if gap.get("wider") == "seeds":
        seeds = gap["between"]["seeds"]
        yield Advice(
            f"{too_small} {seeds['n']} seeds, whose mean is known to"
            f" ±{format_number(measure_reach(seeds))}",
            f"seeds={2 * seeds['n']}, or train further (rounds)",
        )
        return
    if not gap["detectable"] or gap["detectable"] <= abs(gap["mean"]):
        return
    yield Advice(
        f"{too_small} {gap['n']} {run.split} prompts,"
        f" which detect {format_number(gap['detectable'])}",
        _advise_prompts(gap, knob),
    )


def _advise_prompts(gap: ReportRow, knob: str) -> str:
    """The needed number grows with the square of what has to be detected."""
    times = (gap["detectable"] / abs(gap["mean"])) ** 2 if gap["mean"] else float("inf")
    if times > MOST_PROMPTS:
        return "train further first (rounds, train.learning_rate): more prompts alone do not help"
    return f"{knob}={ceil(gap['n'] * times / 100) * 100} would, or train further (rounds)"


def check_lost_prompts(run: FinishedRun) -> Iterator[Advice]:
    funnel = run.report["funnel"]["prompts"] or {"dropped": {}, "in": 0}
    dropped, asked = funnel["dropped"], max(funnel["in"], 1)
    overlap = sum(count for reason, count in dropped.items() if reason.startswith("overlap with"))
    if overlap / asked > MANY_DROPPED:
        ngram = run.config["prompts"]["decontamination"]["ngram"]
        yield Advice(
            f"{format_share(overlap / asked)} of the prompts overlap with dev or test prompts and"
            " were dropped",
            f"look whether a template's words are what they share; prompts.decontamination.ngram"
            f" (now {ngram}) higher drops less",
        )
    near = dropped.get("near duplicate", 0)
    if near / asked > MANY_DROPPED:
        threshold = run.config["prompts"].get("near_duplicate_threshold")
        yield Advice(
            f"{format_share(near / asked)} of the prompts are near duplicates and were dropped",
            f"raise prompts.near_duplicate_threshold (now {threshold}), or null for tasks that"
            " differ only in a number",
        )


def check_long_prompts(run: FinishedRun) -> Iterator[Advice]:
    for samples in run.report["funnel"]["samples"]:
        long = sum(samples["dropped"].values())
        share = long / max(long + samples["prompts"], 1)
        if isinstance(samples["label"], int) and share > MANY_DROPPED:
            limit = run.config["limits"]["prompt"]
            yield Advice(
                f"{format_share(share)} of round {samples['label']}'s prompts are longer than the"
                f" limit of {limit} tokens and were dropped",
                f"limits.prompt={2 * limit}",
            )
            return
