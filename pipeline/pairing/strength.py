"""How much better a pair's chosen answer is, for losses that read it: `p_chosen` and `weight`."""

import polars as pl

from pipeline.config import PairConfig
from pipeline.pairing.selection import OFFLINE


def add_strength(cfg: PairConfig, pairs: pl.DataFrame) -> pl.DataFrame:
    """Fills `p_chosen` where only scores tell it, and gives each pair its `weight`."""
    if cfg.score_scale is not None:
        by_scores = 1 / (1 + (-pl.col("margin") / cfg.score_scale).exp())
        pairs = pairs.with_columns(p_chosen=pl.coalesce("p_chosen", by_scores))
    return pairs.with_columns(weight=_weigh_pairs(cfg))


def _weigh_pairs(cfg: PairConfig) -> pl.Expr:
    match cfg.weight:
        case "margin":
            is_by_hand = pl.col("margin").is_null() & (pl.col("p_chosen") == 1)
            by_margin = (pl.col("margin") / pl.col("margin").mean()).fill_nan(None)
            return pl.when(is_by_hand).then(1.0).otherwise(by_margin)
        case "confidence":  # below a half the judge prefers the other side: nothing to learn
            return (2 * pl.col("p_chosen") - 1).clip(0)
        case "rows":
            return pl.when(pl.col("origin") == OFFLINE).then("weight").otherwise(1.0)
    return pl.lit(None, pl.Float64)
