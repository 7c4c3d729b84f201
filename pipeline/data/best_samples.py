"""Demonstrations out of a round's own samples: each prompt's best one, in the tokens that were scored.

Every prompt gives one demonstration or is dropped with a reason. Joins are by id; equal scores go by sample id.
"""

import polars as pl

from pipeline.artifacts import Samples, Scores
from pipeline.config import BestOfNConfig
from pipeline.errors import UserError, nearest

UNFINISHED, UNSCORED, POOR, LONG = "no finished sample", "no score", "score too low", "too long"


def best_samples(
    cfg: BestOfNConfig, samples: list[Samples], scores: list[Scores], bos: int | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The demonstrations by prompt id, `prompt_id, sample_id, prompt_token_ids, token_ids`; the prompts without one.

    A sample that ran into the limit, is blank or has a BOS of its own is no demonstration, however it scored.
    """
    rows = _scored(cfg, _scan(samples), scores, bos)
    best = rows.sort("fit", "score", "sample_id", descending=[True, True, False], nulls_last=True)
    judged = (
        best.unique("prompt_id", keep="first").with_columns(reason=_fault(cfg)).sort("prompt_id")
    )
    fit = judged["reason"].is_null()
    found = judged.filter(fit).select("prompt_id", "sample_id")
    ids = _scan(samples).select("sample_id", "prompt_token_ids", "token_ids")
    whole = ids.join(found.lazy(), on="sample_id", how="semi").collect(engine="streaming")
    score = pl.col("score").cast(pl.String).fill_null("–")
    detail = pl.format(
        "the best of its samples has the score {} and {} tokens with its prompt", score, "tokens"
    )
    dropped = judged.filter(~fit).select(row="prompt_id", reason="reason", detail=detail)
    return found.join(whole, on="sample_id", maintain_order="left", validate="1:1"), dropped


def _scan(samples: list[Samples]) -> pl.LazyFrame:
    return pl.scan_parquet(
        [file for each in samples for file in sorted((each.path / "samples").glob("*.parquet"))]
    )


def _scored(
    cfg: BestOfNConfig, rows: pl.LazyFrame, scores: list[Scores], bos: int | None
) -> pl.DataFrame:
    """Every sample with its score: `fit` says whether it may be learnt from. Token ids stay on the disk."""
    marks = pl.concat([each.read() for each in scores])
    own = marks.filter(pl.col("scorer") == cfg.scorer).select("sample_id", "score")
    if own.is_empty():
        known = sorted(marks["scorer"].unique())
        raise UserError(
            f"refit.scorer={cfg.scorer}: no such scorer in the scores. {nearest(cfg.scorer, known)}"
        )
    second_bos = pl.lit(False) if bos is None else pl.col("token_ids").list.contains(bos)
    blank = pl.col("completion").str.strip_chars() == ""
    lean = rows.select(
        "prompt_id",
        "sample_id",
        fit=(pl.col("finish_reason") != "length") & ~blank & ~second_bos,
        tokens=pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len(),
    )
    finite = own.with_columns(pl.when(pl.col("score").is_finite()).then("score"))
    return lean.collect(engine="streaming").join(finite, on="sample_id", how="left", validate="1:1")


def _fault(cfg: BestOfNConfig) -> pl.Expr:
    """Why a prompt's best sample is no demonstration; null when it is one."""
    poor = pl.lit(False) if cfg.min_score is None else pl.col("score") < cfg.min_score
    told = (
        pl.when(~pl.col("fit"))
        .then(pl.lit(UNFINISHED))
        .when(pl.col("score").is_null())
        .then(pl.lit(UNSCORED))
    )
    return (
        told.when(poor)
        .then(pl.lit(POOR))
        .when(pl.col("tokens") > cfg.max_length)
        .then(pl.lit(LONG))
    )
