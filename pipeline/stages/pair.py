"""Chooses one pair a prompt, the best against the worst sample, and accounts for every sample and prompt it drops.

Joins are by id. Nothing here depends on the order of rows; ties between equal scores go by sample id.
"""

import hashlib
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Pairs, Samples, Scores, write_json, write_table
from pipeline.config import PairConfig
from pipeline.errors import Broken, Refusal

DROPPED = {"prompt_id": pl.String, "sample_id": pl.String, "reason": pl.String, "detail": pl.String}


def run(cfg: PairConfig, out: Path, *, samples: list[Samples], scores: list[Scores]) -> Pairs:
    drawn = pl.concat([each.read() for each in samples])
    marked = with_scores(cfg, drawn, pl.concat([each.read() for each in scores]))
    candidates, dropped_samples = keep_usable(cfg, marked)
    pairs, dropped_prompts = best_against_worst(cfg, candidates, drawn)
    train, dev = split(cfg, pairs)

    dropped = pl.concat([dropped_samples, dropped_prompts]).sort("prompt_id", "sample_id", nulls_last=True)
    story = funnel(drawn, dropped_samples, candidates, dropped_prompts, train, dev)
    write_json(out / "funnel.json", story)
    write_table(out / "dropped.parquet", dropped)
    if not pairs.height:
        counts = "\n".join(
            f"  {reason}: {n}" for reason, n in {**story["dropped_samples"], **story["dropped_prompts"]}.items()
        )
        raise Refusal(
            f"pair: no pair is left of {story['samples_in']} samples for {story['prompts_in']} prompts:\n{counts}"
        )
    write_table(out / "train.parquet", train)
    write_table(out / "dev.parquet", dev)
    write_table(out / "unpaired.parquet", unpaired(pairs))
    return Pairs(out)


def with_scores(cfg: PairConfig, drawn: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """The samples with the chosen scorer's score; a sample without one has null and is dropped by name later."""
    own = scores.filter(pl.col("scorer") == cfg.scorer).select("sample_id", "score")
    if not own.height:
        known = ", ".join(sorted(scores["scorer"].unique()))
        raise Refusal(f"pair.scorer={cfg.scorer}: no such scorer in the scores. Known: {known}")
    strangers = own.join(drawn, on="sample_id", how="anti")
    if strangers.height:
        raise Refusal(
            f"pair: {strangers.height} of {own.height} scores are of samples that are not here,"
            f" such as {strangers['sample_id'][0]}.\n"
            "  The scores are of another sampling run. Score these samples."
        )
    return drawn.join(own, on="sample_id", how="left", validate="1:1")


def keep_usable(cfg: PairConfig, marked: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples that may stand in a pair, and the others with the first reason that holds."""
    truncated = (pl.col("finish_reason") != "stop") & (not cfg.allow_truncated)
    reason = (
        pl.when(pl.col("score").is_null() | pl.col("score").is_nan())
        .then(pl.lit("no score"))
        .when(truncated)
        .then(pl.lit("truncated"))
        .when(pl.col("completion").str.strip_chars() == "")
        .then(pl.lit("empty"))
    )
    judged = marked.with_columns(reason=reason)
    dropped = judged.filter(pl.col("reason").is_not_null())
    return judged.filter(pl.col("reason").is_null()).drop("reason"), _dropped(dropped, detail=pl.col("finish_reason"))


def best_against_worst(
    cfg: PairConfig, candidates: pl.DataFrame, drawn: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row a prompt, or the reason why it has none."""
    rows = (
        drawn.select("prompt_id")
        .unique()
        .join(_side(candidates, "chosen", best=True), on="prompt_id", how="left")
        .join(_side(candidates, "rejected", best=False), on="prompt_id", how="left")
        .join(candidates.group_by("prompt_id").len("usable"), on="prompt_id", how="left")
        .with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"))
    )
    reason = (
        pl.when(pl.col("usable").is_null())
        .then(pl.lit("no usable sample"))
        .when(pl.col("usable") == 1)
        .then(pl.lit("one usable sample"))
        .when(pl.col("margin") <= 0)
        .then(pl.lit("tie"))
        .when(pl.col("margin") < cfg.min_margin)
        .then(pl.lit("margin too small"))
        .when(
            (pl.col("chosen_text") == pl.col("rejected_text"))
            | (pl.col("chosen_token_ids") == pl.col("rejected_token_ids"))
        )
        .then(pl.lit("equal answers"))
    )
    judged = rows.with_columns(reason=reason, sample_id=pl.lit(None, pl.String))
    kept = judged.filter(pl.col("reason").is_null()).drop("reason", "sample_id")
    dropped = judged.filter(pl.col("reason").is_not_null())
    detail = pl.format("best score {}, of {} usable samples", "chosen_score", "usable")
    return as_pairs(kept, drawn), _dropped(dropped, detail)


def _side(candidates: pl.DataFrame, side: str, best: bool) -> pl.DataFrame:
    """Each prompt's best or worst sample; among equals the one with the smallest id."""
    order = candidates.select("prompt_id", "sample_id", "score").sort(["score", "sample_id"], descending=[best, False])
    picked = order.unique("prompt_id", keep="first", maintain_order=True)
    rows = candidates.join(picked.select("sample_id"), on="sample_id", how="semi")
    return rows.select(
        "prompt_id",
        pl.col("sample_id").alias(f"{side}_id"),
        pl.col("completion").alias(f"{side}_text"),
        pl.col("token_ids").alias(f"{side}_token_ids"),
        pl.col("score").alias(f"{side}_score"),
    )


def as_pairs(kept: pl.DataFrame, drawn: pl.DataFrame) -> pl.DataFrame:
    """TRL's conversational preference format, with ids, scores and the sampler's own tokens."""
    prompts = drawn.select("prompt_id", "prompt", "prompt_token_ids").unique("prompt_id", keep="any")
    return (
        kept.join(prompts, on="prompt_id", how="left", validate="1:1")
        .with_columns(chosen=_answer("chosen_text"), rejected=_answer("rejected_text"))
        .select(
            "prompt", "chosen", "rejected", "prompt_id", "chosen_id", "rejected_id", "chosen_score", "rejected_score",
            "margin", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids",
        )
        .sort("prompt_id")
    )  # fmt: skip


def _answer(column: str) -> pl.Expr:
    message = pl.struct(role=pl.lit("assistant"), content=pl.col(column))
    return pl.concat_list(message)


def split(cfg: PairConfig, pairs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train and dev by a hash of the prompt: all pairs of a prompt fall on one side."""
    ids = sorted(pairs["prompt_id"].unique(), key=lambda i: hashlib.sha256(f"{cfg.seed}:{i}".encode()).digest())
    wanted = max(cfg.dev.least, round(cfg.dev.share * len(ids)))
    dev = set(ids[: min(wanted, int(cfg.dev.most_share * len(ids)))])
    held_out = pl.col("prompt_id").is_in(list(dev))
    return pairs.filter(~held_out), pairs.filter(held_out)


def unpaired(pairs: pl.DataFrame) -> pl.DataFrame:
    """The same answers as thumbs, for KTO."""
    sides = [
        pairs.select(
            "prompt",
            pl.col(side).alias("completion"),
            pl.lit(label).alias("label"),
            "prompt_id",
            pl.col(f"{side}_id").alias("sample_id"),
            "prompt_token_ids",
            pl.col(f"{side}_token_ids").alias("token_ids"),
        )
        for side, label in (("chosen", True), ("rejected", False))
    ]
    return pl.concat(sides).sort("prompt_id", "sample_id")


def funnel(
    drawn: pl.DataFrame,
    dropped_samples: pl.DataFrame,
    candidates: pl.DataFrame,
    dropped_prompts: pl.DataFrame,
    train: pl.DataFrame,
    dev: pl.DataFrame,
) -> dict[str, Any]:
    """Rows in = rows out + rows dropped with a reason, for samples and for prompts."""
    pairs = pl.concat([train, dev])
    story: dict[str, Any] = {
        "samples_in": drawn.height,
        "dropped_samples": _counts(dropped_samples),
        "candidates": candidates.height,
        "prompts_in": drawn["prompt_id"].n_unique(),
        "dropped_prompts": _counts(dropped_prompts),
        "pairs": pairs.height,
        "train": train.height,
        "dev": dev.height,
        "margin": _quantiles(pairs["margin"]),
        "chosen_score": _quantiles(pairs["chosen_score"]),
        "rejected_score": _quantiles(pairs["rejected_score"]),
        "chosen_tokens": _quantiles(pairs["chosen_token_ids"].list.len()),
        "rejected_tokens": _quantiles(pairs["rejected_token_ids"].list.len()),
    }
    lost_samples = story["samples_in"] - story["candidates"] - dropped_samples.height
    lost_prompts = story["prompts_in"] - story["pairs"] - dropped_prompts.height
    if lost_samples or lost_prompts:
        raise Broken(f"pair: {lost_samples} samples and {lost_prompts} prompts are unaccounted for: {story}")
    return story


def _dropped(rows: pl.DataFrame, detail: pl.Expr) -> pl.DataFrame:
    return rows.select("prompt_id", "sample_id", "reason", detail=detail.cast(pl.String)).cast(DROPPED)  # type: ignore[arg-type]


def _counts(dropped: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(dropped["reason"].value_counts().rows()))


def _quantiles(values: pl.Series) -> dict[str, float]:
    points = {"least": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "most": 1.0}
    if values.is_empty():
        return {}
    return {name: round(float(values.quantile(point) or 0), 6) for name, point in points.items()}
