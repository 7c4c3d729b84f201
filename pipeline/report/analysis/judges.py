"""A judge's verdicts as contests: the unit is the prompt, a disagreement between the two orders is a tie."""

import polars as pl

from pipeline.artifacts import EQUAL_ANSWERS, Verdicts
from pipeline.report.analysis.aggregate import Duel, named
from pipeline.report.analysis.eval_results import EvalResult, by_prompt
from pipeline.report.analysis.statistics import BootstrapConfig, contest, length_adjusted

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


def judged(
    duels: dict[str, dict[str, dict[str, Verdicts]]],
    examined: list[EvalResult],
    draw: BootstrapConfig,
) -> list[Duel]:
    """Judge → newer model → older model, in the order of the plan."""
    return [
        duel(judge, a, b, verdicts.read(), draw)
        for judge, contests in duels.items()
        for new, against in contests.items()
        for old, verdicts in against.items()
        if (a := named(examined, new)) and (b := named(examined, old))
    ]


def duel(
    judge: str, a: EvalResult, b: EvalResult, rows: pl.DataFrame, draw: BootstrapConfig
) -> Duel:
    pairs = _both_orders(rows)
    points = by_prompt(pairs, "points")
    against = {key: 1 - value for key, value in points.items()}
    lengths = [by_prompt(model.answers, "tokens") for model in (a, b)]
    gaps = {key: lengths[0][key] - lengths[1][key] for key in lengths[0].keys() & lengths[1].keys()}
    flips = by_prompt(pairs.filter("asked"), "flipped").values()
    return Duel(
        a,
        b,
        judge,
        contest(points, against, rows["prompt_id"].n_unique(), draw),
        (points, against),
        length_adjusted(points, gaps, draw.level),
        sum(flips) / len(flips) if flips else None,
        orders(rows),
    )


def orders(rows: pl.DataFrame) -> dict[str, list[str | None]]:
    """What was said of each pair of a prompt's answers, in both orders one after the other."""
    sorted_rows = rows.sort("prompt_id", "a_id", "b_id", "order")
    return dict(sorted_rows.group_by("prompt_id", maintain_order=True).agg("winner").iter_rows())


def _both_orders(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each pair of answers whose two verdicts both came: its points for `a`, and whether it flipped."""
    answered = rows.filter(pl.col("a_id").is_not_null() & pl.col("b_id").is_not_null())
    pairs = answered.group_by("prompt_id", "a_id", "b_id", maintain_order=True).agg(
        whole=(pl.col("winner").count() == 2),
        flipped=(pl.col("winner").n_unique() > 1).cast(pl.Float64),
        asked=(pl.col("detail") != EQUAL_ANSWERS).all(),
        first=pl.col("winner").first(),
    )
    points = (
        pl.when(pl.col("flipped") > 0)
        .then(0.5)
        .otherwise(pl.col("first").replace_strict(POINTS, default=None))
    )
    return pairs.filter("whole").with_columns(points=points.cast(pl.Float64))
