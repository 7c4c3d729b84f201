"""Demonstrations out of a round's own samples: each prompt's best one, in the tokens that were scored.

Every prompt gives one demonstration or is dropped with a reason. Joins are by id; equal scores go by sample id.
"""

import polars as pl

from pipeline.artifacts import Samples, Scores
from pipeline.config import Refit
from pipeline.errors import Refusal, nearest

COLUMNS = "prompt_id", "sample_id", "completion", "finish_reason", "prompt_token_ids", "token_ids"
NO_SCORE, UNFINISHED, POOR, LONG = "no score", "no finished sample", "score too low", "too long"
DROPPED = {"row": pl.String, "reason": pl.String, "detail": pl.String}


def best_samples(cfg: Refit, samples: list[Samples], scores: list[Scores]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The demonstrations by prompt id, `prompt_id, sample_id, score, prompt_token_ids, token_ids`; what was dropped."""
    rows = _scored(cfg, samples, scores)
    finished = rows.filter(pl.col("finish_reason") != "length", pl.col("completion").str.strip_chars() != "")
    usable = finished.filter(pl.col("score").is_finite())
    best = usable.sort("score", "sample_id", descending=[True, False]).unique("prompt_id", keep="first")
    asked = rows.select("prompt_id").unique()
    without = asked.join(best, on="prompt_id", how="anti")
    some = without["prompt_id"].is_in(finished["prompt_id"].implode())
    lacking = without.select("prompt_id", reason=pl.when(some).then(pl.lit(NO_SCORE)).otherwise(pl.lit(UNFINISHED)))
    judged = best.with_columns(reason=_fault(cfg)).sort("prompt_id")
    gone = pl.concat([lacking, judged.filter(pl.col("reason").is_not_null())], how="diagonal").sort("prompt_id")
    detail = pl.format("its best scores {} in {} tokens", "score", pl.col("token_ids").list.len())
    dropped = gone.select(row="prompt_id", reason="reason", detail=detail.fill_null("")).cast(DROPPED)  # type: ignore[arg-type]
    columns = "prompt_id", "sample_id", "score", "prompt_token_ids", "token_ids"
    return judged.filter(pl.col("reason").is_null()).select(columns), dropped


def _scored(cfg: Refit, samples: list[Samples], scores: list[Scores]) -> pl.DataFrame:
    marks = pl.concat([each.read() for each in scores])
    own = marks.filter(pl.col("scorer") == cfg.scorer).select("sample_id", "score")
    if own.is_empty():
        known = sorted(marks["scorer"].unique())
        raise Refusal(f"refit.scorer={cfg.scorer}: no such scorer in the scores. {nearest(cfg.scorer, known)}")
    rows = pl.concat([each.read().select(COLUMNS) for each in samples])
    return rows.join(own, on="sample_id", how="left", validate="1:1")


def _fault(cfg: Refit) -> pl.Expr:
    """Why a prompt's best sample is no demonstration; null when it is one."""
    tokens = pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len()
    poor = pl.lit(False) if cfg.min_score is None else pl.col("score") < cfg.min_score
    return pl.when(poor).then(pl.lit(POOR)).when(tokens > cfg.max_length).then(pl.lit(LONG))
