"""What a finished run's figures point to: each with its figure and the knob to turn.

`CHECKS` is in order of importance. A fault of the measurement comes first, since no other figure
counts before it is found; then answers that were cut, which is why much of the rest happens; then
what training did, the pairs that it had, and the prompts.
"""

from collections.abc import Callable, Iterator, Sequence

from pipeline.report.analysis.remedies import measurement, pairs, prompts, training
from pipeline.report.analysis.remedies.finished_run import Advice, FinishedRun

CHECKS: Sequence[Callable[[FinishedRun], Iterator[Advice]]] = (
    measurement.check_control,
    measurement.check_failed_scores,
    measurement.check_judges,
    measurement.check_over_optimisation,
    measurement.check_retention,
    pairs.check_truncation,
    training.check_distance,
    training.check_symptoms,
    training.check_displacement,
    training.check_separation,
    training.check_early_stop,
    training.check_rate,
    pairs.check_ties,
    pairs.check_pairs,
    pairs.check_filters,
    pairs.check_answers_end,
    training.check_length,
    training.check_repetition,
    prompts.check_power,
    prompts.check_lost_prompts,
    prompts.check_long_prompts,
)


def find_advice(run: FinishedRun) -> list[Advice]:
    """The most important first."""
    return [advice for check in CHECKS for advice in check(run)]
