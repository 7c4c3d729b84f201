"""A judge's verdicts as contests. The unit is the prompt; two orders that disagree are a tie."""

from dataclasses import replace

import polars as pl

from pipeline.artifacts import EQUAL_ANSWERS, Verdicts
from pipeline.report.analysis.aggregate import ModelDuel, find_model
from pipeline.report.analysis.eval_results import EvalResult, mean_by_prompt
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    ByPrompt,
    adjust_for_length,
    adjust_for_style,
    count_wins,
)
from pipeline.report.analysis.style import list_style_gaps

POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


def judge_duels(
    duels: dict[str, dict[str, dict[str, Verdicts]]],
    results: list[EvalResult],
    bootstrap: BootstrapConfig,
) -> list[ModelDuel]:
    """`duels`: judge → newer model → older model, in the order of the plan."""
    return [
        judge_duel(judge, a, b, verdicts.read(), bootstrap)
        for judge, contests in duels.items()
        for new, against in contests.items()
        for old, verdicts in against.items()
        if (a := find_model(results, new)) and (b := find_model(results, old))
    ]


def judge_duel(
    judge: str, a: EvalResult, b: EvalResult, rows: pl.DataFrame, bootstrap: BootstrapConfig
) -> ModelDuel:
    pairs = _join_orders(rows)
    points = mean_by_prompt(pairs, "points")
    weights = mean_by_prompt(pairs, "weight") if "weight" in pairs.columns else None
    duel = build_duel(judge, a, b, points, rows["prompt_id"].n_unique(), bootstrap, weights)
    flips = mean_by_prompt(pairs.filter("asked"), "flipped").values()
    flip_rate = sum(flips) / len(flips) if flips else None
    return replace(duel, flip_rate=flip_rate, orders=collect_orders(rows))


def build_duel(
    judge: str,
    a: EvalResult,
    b: EvalResult,
    points: ByPrompt,
    expected: int,
    bootstrap: BootstrapConfig,
    weights: ByPrompt | None = None,
) -> ModelDuel:
    """The contest by a judge's points for `a`, and its rate at equal length and equal style."""
    against = {key: 1 - value for key, value in points.items()}
    lengths = [mean_by_prompt(model.answers, "tokens") for model in (a, b)]
    gaps = {key: lengths[0][key] - lengths[1][key] for key in lengths[0].keys() & lengths[1].keys()}
    style = list_style_gaps(a.answers, b.answers)
    return ModelDuel(
        a,
        b,
        judge,
        count_wins(points, against, expected, bootstrap, weights),
        (points, against),
        adjust_for_length(points, gaps, bootstrap.level, weights),
        adjust_for_style(points, style, bootstrap.level, weights),
        weights=weights,
    )


def collect_orders(rows: pl.DataFrame) -> dict[str, list[str | None]]:
    """By prompt, the verdicts on each pair of its answers, both orders one after the other."""
    sorted_rows = rows.sort("prompt_id", "a_id", "b_id", "order")
    return dict(sorted_rows.group_by("prompt_id", maintain_order=True).agg("winner").iter_rows())


def _join_orders(rows: pl.DataFrame) -> pl.DataFrame:
    """A row per pair of answers with verdicts in both orders: points for `a`, and a flip.

    A judge with five levels gives a pair a weight; a disagreement of the orders counts as one.
    """
    answered = rows.filter(pl.col("a_id").is_not_null() & pl.col("b_id").is_not_null())
    pairs = answered.group_by("prompt_id", "a_id", "b_id", maintain_order=True).agg(
        whole=(pl.col("winner").count() == 2),
        flipped=(pl.col("winner").n_unique() > 1).cast(pl.Float64),
        asked=(pl.col("detail") != EQUAL_ANSWERS).all(),
        first=pl.col("winner").first(),
        **({"weight": pl.col("weight").mean()} if "weight" in rows.columns else {}),
    )
    if "weight" in pairs.columns:
        flat = pl.when(pl.col("flipped") > 0).then(1.0).otherwise(pl.col("weight"))
        pairs = pairs.with_columns(weight=flat)
    points = (
        pl.when(pl.col("flipped") > 0)
        .then(0.5)
        .otherwise(pl.col("first").replace_strict(POINTS, default=None))
    )
    return pairs.filter("whole").with_columns(points=points.cast(pl.Float64))
