"""How often a pair's preference is wrong: estimated from scorers that disagree, annotators, and a judge's flips.

Two judgements that are each wrong with probability e, independently, differ with probability 2e(1-e): so differences
that can be seen give the noise that cannot. `detail` of the deciding scorer's rows may hold, as JSON, `flip_rate`
(how often the order of two answers changed the verdict) and `annotators` (their scores, in one order for all samples).
"""

from typing import Any

import polars as pl

from pipeline.pairing.candidates import other_scorers

WORTH_SMOOTHING = 0.15
NEVER = 0.49  # more than a coin's noise cannot be smoothed


def with_signs(pairs: pl.DataFrame, scores: pl.DataFrame, scorer: str) -> pl.DataFrame:
    """`disagreement`, `flip_rate` and `annotators` (share of two that differ) of each pair, null where unknown."""
    known = pairs.select("chosen_id", "rejected_id").with_row_index("at")
    return pairs.with_columns(
        _disagreement(known, scores, scorer).alias("disagreement"),
        *_of_details(known, scores.filter(pl.col("scorer") == scorer)),
    )


def without_signs(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("disagreement", "flip_rate", "annotators")
    )


def _disagreement(known: pl.DataFrame, scores: pl.DataFrame, scorer: str) -> pl.Series:
    """The share of the other scorers that prefer the rejected answer; one that sees no difference counts half."""
    verdicts = []
    for name in other_scorers(scores, scorer):
        both = _both(known, scores.filter(pl.col("scorer") == name), "score")
        chosen, rejected = pl.col("chosen"), pl.col("rejected")
        wrong = (
            pl.when(chosen == rejected)
            .then(0.5)
            .when(chosen < rejected)
            .then(1.0)
            .when(chosen > rejected)
            .then(0.0)
        )
        verdicts.append(both.select(wrong.alias(name)))
    if not verdicts:
        return pl.Series([None] * known.height, dtype=pl.Float64)
    return pl.concat(verdicts, how="horizontal").mean_horizontal()


def _of_details(known: pl.DataFrame, own: pl.DataFrame) -> list[pl.Series]:
    told = own.filter(pl.col("detail").str.starts_with("{"))
    if not told.height:
        empty = pl.Series([None] * known.height, dtype=pl.Float64)
        return [empty.alias("flip_rate"), empty.alias("annotators")]
    told = told.select(
        "sample_id",
        flips=pl.col("detail").str.json_path_match("$.flip_rate").cast(pl.Float64, strict=False),
        people=pl.col("detail").str.json_path_match("$.annotators").str.strip_chars("[]").str.split(",")
        .list.eval(pl.element().str.strip_chars().cast(pl.Float64, strict=False)),
    )  # fmt: skip
    flips, people = _both(known, told, "flips"), _both(known, told, "people")
    return [flips.mean_horizontal().alias("flip_rate"), _apart(people).alias("annotators")]


def _both(known: pl.DataFrame, told: pl.DataFrame, column: str) -> pl.DataFrame:
    """A column of the scores for both sides of each pair."""
    for side in ("chosen", "rejected"):
        named = told.select(pl.col("sample_id").alias(f"{side}_id"), pl.col(column).alias(side))
        known = known.join(named, on=f"{side}_id", how="left", maintain_order="left")
    return known.select("chosen", "rejected")


def _apart(people: pl.DataFrame) -> pl.Series:
    """How often two annotators of a pair prefer different sides; one who sees no difference is half on each."""
    same = pl.col("chosen").list.len() == pl.col("rejected").list.len()
    rows = (
        people.with_row_index("at")
        .filter(same & (pl.col("chosen").list.len() > 1))
        .explode("chosen", "rejected")
    )
    up = ((pl.col("chosen") - pl.col("rejected")).sign() + 1) / 2
    share = (
        rows.select("at", up=up).drop_nulls().group_by("at").agg(up=pl.col("up").mean(), n=pl.len())
    )
    apart = share.with_columns(
        apart=2 * pl.col("up") * (1 - pl.col("up")) * pl.col("n") / (pl.col("n") - 1)
    )
    whole = people.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("at"))
    return whole.join(apart, on="at", how="left", maintain_order="left")["apart"].clip(0, 1)


def estimate(pairs: pl.DataFrame) -> dict[str, Any]:
    """The noise that each sign points to, the largest of them, and the smoothing that it suggests."""
    signs = {"scorers": "disagreement", "annotators": "annotators", "flips": "flip_rate"}
    found = {name: _noise(pairs[column].mean()) for name, column in signs.items()}
    known = [value for value in found.values() if value is not None]
    noise = max(known) if known else None
    smoothing = min(noise, NEVER) if noise is not None and noise >= WORTH_SMOOTHING else 0.0
    return {
        **found,
        "estimate": noise,
        "suggested_label_smoothing": {
            "cdpo": round(smoothing, 2),
            "robust_dpo": round(smoothing, 2),
        },
    }


def _noise(differing: Any) -> float | None:
    """e from 2e(1-e); beyond a half the two know nothing of each other."""
    return (
        None if differing is None else round((1 - max(0.0, 1 - 2 * float(differing)) ** 0.5) / 2, 4)
    )
