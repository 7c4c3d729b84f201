"""Demonstrations from a round's own samples: each prompt's best one, in its own tokens.

Every prompt gives one demonstration or is dropped with a reason. Joins are by id; equal scores go
by sample id.
"""

import polars as pl

from pipeline.artifacts import Samples, Scores, scan_tables
from pipeline.config import BestOfNConfig
from pipeline.data.drop_log import DropLog
from pipeline.errors import UserError, suggest

UNFINISHED, UNSCORED, POOR, LONG = "no finished sample", "no score", "score too low", "too long"


def select_best(
    cfg: BestOfNConfig, samples: list[Samples], scores: list[Scores], bos: int | None
) -> tuple[pl.DataFrame, DropLog]:
    """The demonstrations in the order of prompt ids, and the prompts without one.

    Columns of the demonstrations: `prompt_id, sample_id, prompt_token_ids, token_ids`. A sample
    that ran into the limit, is blank or contains a BOS is not a demonstration, whatever its score.
    """
    rows = _join_scores(cfg, _scan_samples(samples), scores, bos)
    ranked = rows.sort("fit", "score", "sample_id", descending=[True, True, False], nulls_last=True)
    firsts = ranked.unique("prompt_id", keep="first")
    best = firsts.with_columns(reason=_drop_reason(cfg)).sort("prompt_id")
    fit = best["reason"].is_null()
    found = best.filter(fit).select("prompt_id", "sample_id")
    ids = _scan_samples(samples).select("sample_id", "prompt_token_ids", "token_ids")
    tokens = ids.join(found.lazy(), on="sample_id", how="semi").collect(engine="streaming")
    score = pl.col("score").cast(pl.String).fill_null("–")
    detail = pl.format(
        "the best of its samples has the score {} and {} tokens with its prompt", score, "tokens"
    )
    dropped = best.filter(~fit).select(row="prompt_id", reason="reason", detail=detail)
    log = DropLog(best.height, row=pl.String)
    kept = found.join(tokens, on="sample_id", maintain_order="left", validate="1:1")
    return log.record((kept, dropped)), log


def _scan_samples(samples: list[Samples]) -> pl.LazyFrame:
    folders = [each.path / "samples" for each in samples]
    return scan_tables([file for folder in folders for file in sorted(folder.glob("*.parquet"))])


def _join_scores(
    cfg: BestOfNConfig, rows: pl.LazyFrame, scores: list[Scores], bos: int | None
) -> pl.DataFrame:
    """Every sample with its score, and `fit`: whether it may be learnt from.

    Token ids stay on the disk.
    """
    table = pl.concat([each.read() for each in scores])
    own = table.filter(pl.col("scorer") == cfg.scorer).select("sample_id", "score")
    if own.is_empty():
        known = sorted(table["scorer"].unique())
        raise UserError(
            f"best_of_n.scorer={cfg.scorer}: no such scorer in the scores."
            f" {suggest(cfg.scorer, known)}"
        )
    second_bos = pl.lit(False) if bos is None else pl.col("token_ids").list.contains(bos)
    blank = pl.col("completion").str.strip_chars() == ""
    metadata = rows.select(
        "prompt_id",
        "sample_id",
        fit=(pl.col("finish_reason") != "length") & ~blank & ~second_bos,
        tokens=pl.col("prompt_token_ids").list.len() + pl.col("token_ids").list.len(),
    )
    finite = own.with_columns(pl.when(pl.col("score").is_finite()).then("score"))
    return metadata.collect(engine="streaming").join(
        finite, on="sample_id", how="left", validate="1:1"
    )


def _drop_reason(cfg: BestOfNConfig) -> pl.Expr:
    """Why a prompt's best sample is not a demonstration; null where it is one."""
    poor = pl.lit(False) if cfg.min_score is None else pl.col("score") < cfg.min_score
    reasons = [
        (~pl.col("fit"), UNFINISHED),
        (pl.col("score").is_null(), UNSCORED),
        (poor, POOR),
        (pl.col("tokens") > cfg.max_length, LONG),
    ]
    return pl.coalesce(pl.when(holds).then(pl.lit(reason)) for holds, reason in reasons)
