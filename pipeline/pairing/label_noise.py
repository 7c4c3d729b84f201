"""How often a pair's preference is wrong, from scorers, annotators and the judge's flips.

Two judgements that are each wrong with probability e, independently, differ with probability
2e(1-e): the observed differences give the noise, which cannot be observed. `detail` of the deciding
scorer's rows may hold, as JSON, `flip_rate` (how often the order of two answers changed the
verdict), `annotators` (their scores, in one order for all samples) and `wins` (by opponent, the
probability that a judge prefers this answer). The last two give `p_chosen` as well.
"""

from typing import Any

import polars as pl

from pipeline.pairing.candidates import list_other_scorers

WORTH_SMOOTHING = 0.15
MAX_SMOOTHING = 0.49  # at a half the labels are a coin's, and no smoothing helps
SIGNS = "disagreement", "flip_rate", "annotators", "p_chosen"


def add_signs(pairs: pl.DataFrame, scores: pl.DataFrame, scorer: str) -> pl.DataFrame:
    """Adds `SIGNS` to each pair, null where unknown.

    `annotators`: how often two of them differ. `p_chosen`: the probability that chosen is better,
    by their votes or a judge's verdict on the two.
    """
    known = pairs.select("chosen_id", "rejected_id").with_row_index("at")
    return pairs.with_columns(
        _disagreement(known, scores, scorer).alias("disagreement"),
        *_read_details(known, scores.filter(pl.col("scorer") == scorer)),
    )


def add_empty_signs(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.with_columns(pl.lit(None, pl.Float64).alias(name) for name in SIGNS)


def _disagreement(known: pl.DataFrame, scores: pl.DataFrame, scorer: str) -> pl.Series:
    """The share of other scorers that prefer the rejected answer. Equal scores count half."""
    verdicts = []
    for name in list_other_scorers(scores, scorer):
        both = _join_sides(known, scores.filter(pl.col("scorer") == name), "score")
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


def _read_details(known: pl.DataFrame, own: pl.DataFrame) -> list[pl.Series]:
    details = own.filter(pl.col("detail").str.starts_with("{"))
    if not details.height:
        empty = pl.Series([None] * known.height, dtype=pl.Float64)
        return [empty.alias(name) for name in SIGNS[1:]]
    flip_rate = pl.col("detail").str.json_path_match("$.flip_rate")
    numbers = pl.col("detail").str.json_path_match("$.annotators").str.strip_chars("[]")
    number = pl.element().str.strip_chars().cast(pl.Float64, strict=False)
    details = details.select(
        "sample_id",
        "detail",
        flips=flip_rate.cast(pl.Float64, strict=False),
        annotators=numbers.str.split(",").list.eval(number),
    )
    flips = _join_sides(known, details, "flips")
    votes = _count_votes(_join_sides(known, details, "annotators"))
    won = _read_wins(known, details)
    return [
        flips.mean_horizontal().alias("flip_rate"),
        _annotator_disagreement(votes).alias("annotators"),
        votes["up"].zip_with(votes["up"].is_not_null(), won).alias("p_chosen"),
    ]


def _read_wins(known: pl.DataFrame, details: pl.DataFrame) -> pl.Series:
    """The judge's probability that chosen beats rejected, where it compared the two."""
    chosen = details.select("detail", chosen_id="sample_id")
    table = known.join(chosen, on="chosen_id", how="left", maintain_order="left")
    path = pl.format('$.wins["{}"]', "rejected_id")
    won = pl.col("detail").str.json_path_match(path).cast(pl.Float64, strict=False)
    return table.select(won).to_series()


def _join_sides(known: pl.DataFrame, table: pl.DataFrame, column: str) -> pl.DataFrame:
    """A column of the scores for both sides of each pair."""
    for side in ("chosen", "rejected"):
        named = table.select(pl.col("sample_id").alias(f"{side}_id"), pl.col(column).alias(side))
        known = known.join(named, on=f"{side}_id", how="left", maintain_order="left")
    return known.select("chosen", "rejected")


def _count_votes(sides: pl.DataFrame) -> pl.DataFrame:
    """`up`: the share of a pair's annotators for chosen. Equal scores are half. `n`: how many."""
    same = pl.col("chosen").list.len() == pl.col("rejected").list.len()
    rows = (
        sides.with_row_index("at")
        .filter(same & (pl.col("chosen").list.len() > 1))
        .explode("chosen", "rejected")
    )
    up = ((pl.col("chosen") - pl.col("rejected")).sign() + 1) / 2
    votes = rows.select("at", up=up).drop_nulls().group_by("at")
    found = votes.agg(up=pl.col("up").mean(), n=pl.len())
    every = sides.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("at"))
    return every.join(found, on="at", how="left", maintain_order="left")


def _annotator_disagreement(votes: pl.DataFrame) -> pl.Series:
    """How often two annotators of a pair prefer different sides."""
    share, n = pl.col("up"), pl.col("n")
    # Of two different annotators among n: p(1-p) + (1-p)p, with n / (n - 1) for drawing without
    # replacement.
    differing = 2 * share * (1 - share) * n / (n - 1)
    return votes.select(differing.clip(0, 1)).to_series()


def estimate_noise(pairs: pl.DataFrame) -> dict[str, Any]:
    """The noise that each sign implies, the largest of them, and the smoothing that it suggests."""
    signs = {"scorers": "disagreement", "annotators": "annotators", "flips": "flip_rate"}
    found = {name: _solve_noise(pairs[column].mean()) for name, column in signs.items()}
    known = [value for value in found.values() if value is not None]
    noise = max(known) if known else None
    is_worth_it = noise is not None and noise >= WORTH_SMOOTHING
    smoothing = min(noise or 0.0, MAX_SMOOTHING) if is_worth_it else 0.0
    return {
        **found,
        "estimate": noise,
        "suggested_label_smoothing": {
            "cdpo": round(smoothing, 2),
            "robust_dpo": round(smoothing, 2),
        },
    }


def _solve_noise(differing: Any) -> float | None:
    """e from 2e(1-e), the rate at which two judgements differ.

    From a half on, the two are independent of each other.
    """
    if differing is None:
        return None
    return round((1 - max(0.0, 1 - 2 * float(differing)) ** 0.5) / 2, 4)
