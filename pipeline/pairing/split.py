"""Pairs as files, in TRL's conversational preference format, split by prompt; rows for KTO."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from pipeline.config import DevPairs, PairConfig
from pipeline.errors import UserError, suggest

PAIR_COLUMNS = (
    "prompt", "chosen", "rejected", "prompt_id", "chosen_id", "rejected_id",
    "chosen_score", "rejected_score", "margin", "p_chosen", "weight",
    "prompt_token_ids", "chosen_token_ids", "rejected_token_ids", "origin",
)  # fmt: skip
PAIR_IDS = "prompt_id", "chosen_id", "rejected_id"
SOURCE_COLUMNS = "chosen_source", "rejected_source"
UNPAIRED_COLUMNS = (
    "prompt",
    "completion",
    "label",
    "prompt_id",
    "sample_id",
    "prompt_token_ids",
    "token_ids",
)


def build_pairs(kept: pl.DataFrame, prompts: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Joined by id: each pair's messages, and exactly the tokens that were sampled."""
    table = kept.join(prompts, on="prompt_id", how="left", validate="m:1")
    for side in ("chosen", "rejected"):
        tokens = answers.select(
            pl.col("sample_id").alias(f"{side}_id"), pl.col("token_ids").alias(f"{side}_token_ids")
        )
        table = table.join(tokens, on=f"{side}_id", how="left", validate="m:1")
    table = table.with_columns(
        chosen=to_message("chosen_text"), rejected=to_message("rejected_text")
    )
    return table.select(*PAIR_COLUMNS, *SOURCE_COLUMNS).sort(
        "prompt_id", "chosen_id", "rejected_id"
    )


def to_message(column: str) -> pl.Expr:
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(column)))


def split_pairs(cfg: PairConfig, pairs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Train and dev by a hash of the prompt: all pairs of a prompt fall on one side."""
    dev = hold_out(pairs["prompt_id"], cfg.dev, cfg.seed)
    on_dev = pl.col("prompt_id").is_in(list(dev))
    return pairs.filter(~on_dev), pairs.filter(on_dev)


def spend_budget(
    cfg: PairConfig, train: pl.DataFrame, columns: Mapping[str, Mapping[str, Any]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs to train on and the others, by a hash: a smaller budget takes a part of these.

    `columns` are those of the prompts. With `balance` each value of that column comes in turn.
    """
    limit, column = cfg.budget.at_most, cfg.budget.balance
    if limit is None:
        return train, train.clear()
    if column and not any(column in values for values in columns.values()):
        names = sorted({name for values in columns.values() for name in values})
        raise UserError(
            f"pair.budget.balance={column}: no prompt has this column. {suggest(column, names)}"
        )
    groups = [str(columns.get(i, {}).get(column or "")) for i in train["prompt_id"]]
    ranked = train.with_columns(order=_hash_pairs(cfg, train), group=pl.Series(groups))
    ranked = ranked.sort("order").with_columns(turn=pl.int_range(pl.len()).over("group"))
    ranked = ranked.sort("turn", "order").drop("order", "group", "turn")
    return ranked.head(limit).sort(PAIR_IDS), ranked.slice(limit)


def cap_prompts(
    cfg: PairConfig, train: pl.DataFrame, earlier: Iterable[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs that a prompt may still have after those of earlier rounds; the others."""
    if (limit := cfg.budget.per_prompt) is None:
        return train, train.clear()
    used = pl.concat([train.select("prompt_id").clear(), *(t.select("prompt_id") for t in earlier)])
    counts = used.group_by("prompt_id").agg(used=pl.len())
    ranked = train.with_columns(order=_hash_pairs(cfg, train)).sort("prompt_id", "order")
    ranked = ranked.with_columns(turn=pl.int_range(pl.len()).over("prompt_id"))
    ranked = ranked.join(counts, on="prompt_id", how="left", maintain_order="left")
    fits = pl.col("turn") + pl.col("used").fill_null(0) < limit
    kept, beyond = (ranked.filter(test).select(train.columns) for test in (fits, ~fits))
    return kept.sort(PAIR_IDS), beyond


def _hash_pairs(cfg: PairConfig, pairs: pl.DataFrame) -> pl.Series:
    order = [
        hashlib.sha256(f"{cfg.seed}:budget:{':'.join(row)}".encode()).hexdigest()
        for row in pairs.select(PAIR_IDS).rows()
    ]
    return pl.Series(order, dtype=pl.String)


def hold_out(prompt_ids: Iterable[str], dev: DevPairs, seed: int) -> set[str]:
    ids = sorted(set(prompt_ids), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    wanted = max(dev.min, round(dev.share * len(ids)))
    return set(ids[: min(wanted, int(dev.max_share * len(ids)))])


def to_unpaired(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs' answers one by one, labelled: chosen true, rejected false."""
    parts = [
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
    return pl.concat(parts).unique(["sample_id", "label"]).sort("prompt_id", "sample_id", "label")
