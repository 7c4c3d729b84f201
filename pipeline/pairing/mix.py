"""Offline rows with the policy's own pairs: a block each round, the same filters, fixed shares."""

import hashlib

import polars as pl

from pipeline.artifacts import Logps, Pairs
from pipeline.config import PairRound
from pipeline.errors import UserError, pluralize
from pipeline.pairing.selection import FILTER_COLUMNS, OFFLINE, to_dropped
from pipeline.pairing.sources import SIDES, add_reference


def select_block(cfg: PairRound, offline: Pairs) -> pl.DataFrame:
    """The offline rows of this round, in an order of hashes. A prompt's rows are adjacent."""
    rows = pl.concat([offline.read_train(), offline.read_dev()])
    order = [hashlib.sha256(f"{cfg.seed}:{i}".encode()).hexdigest() for i in rows["prompt_id"]]
    rows = (
        rows.with_columns(pl.Series("order", order, dtype=pl.String))
        .sort("order", "chosen_id", "rejected_id")
        .drop("order")
    )
    if short := cfg.explain_shortage(rows.height):
        raise UserError(short)
    size = cfg.mix.per_round
    return rows if size is None else rows.slice((cfg.round - 1) * size, size)


def to_filter_columns(rows: pl.DataFrame, prior: Logps | None) -> pl.DataFrame:
    """Offline rows in the columns that the filters read, and their own `weight`.

    `reference` is the log-probability per token, in nats, of the less likely side.
    """
    table = rows.select(
        "prompt_id",
        pl.col("prompt_token_ids").list.len().alias("prompt_tokens"),
        *(pl.lit(None, pl.UInt32).alias(side) for side in SIDES),
        *_side_columns("chosen"),
        *_side_columns("rejected"),
        "margin",
        origin=pl.lit(OFFLINE),
        **{f"{side}_source": pl.lit(OFFLINE) for side in SIDES},
    )
    table = table.select(*FILTER_COLUMNS).cast(FILTER_COLUMNS)  # type: ignore[arg-type]
    table = table.with_columns(rows["weight"])
    return add_reference(table, [prior] if prior else [])


def _side_columns(side: str) -> list[pl.Expr]:
    return [
        pl.col(f"{side}_id"),
        pl.col(side).list.last().struct.field("content").alias(f"{side}_text"),
        pl.col(f"{side}_token_ids").list.len().alias(f"{side}_tokens"),
        pl.col(f"{side}_score"),
    ]


def mix_pairs(cfg: PairRound, kept: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All of the policy's own pairs, and as many offline ones as their share asks for.

    The surplus is dropped with a reason.
    """
    mine = kept.filter(pl.col("origin") != OFFLINE)
    theirs = kept.filter(pl.col("origin") == OFFLINE)
    if cfg.mix.on_policy == 0:
        return theirs, to_dropped("pair", theirs.clear().with_columns(reason=pl.lit("", pl.String)))
    wanted = round(mine.height * cfg.mix.offline / cfg.mix.on_policy)
    if theirs.height < wanted:
        raise UserError(_too_few_error(cfg, mine.height, wanted, theirs.height))
    order = [
        hashlib.sha256(f"{cfg.seed}:{a}:{b}".encode()).hexdigest()
        for a, b in theirs.select("chosen_id", "rejected_id").rows()
    ]
    theirs = (
        theirs.with_columns(pl.Series("order", order, dtype=pl.String)).sort("order").drop("order")
    )
    surplus = theirs.slice(wanted).with_columns(reason=pl.lit("not needed by the mix"))
    return pl.concat([mine, theirs.head(wanted)]), to_dropped("pair", surplus)


def _too_few_error(cfg: PairRound, mine: int, wanted: int, there: int) -> str:
    share = there / (mine + there) if there else 0.0
    offline = int(share * 1000) / 1000
    return (
        f"pair.mix: a share of {cfg.mix.on_policy:g} for {pluralize(mine, 'pair')} of the"
        " policy's own"
        f" asks for {pluralize(wanted, 'offline pair')}, and the filters leave {there}.\n"
        "  Give more offline rows (or a larger pair.mix.per_round),"
        f" or pair.mix.offline={offline:g} and pair.mix.on_policy={1 - offline:g}."
    )


def select_unpaired(cfg: PairRound, offline: Pairs) -> pl.DataFrame:
    """This round's unpaired offline answers: those that belong to no pair."""
    rows = pl.concat([offline.read_train(), offline.read_dev()]).select("chosen_id", "rejected_id")
    table = offline.read_unpaired()
    for side in ("chosen_id", "rejected_id"):
        table = table.join(rows, left_on="sample_id", right_on=side, how="anti")
    table = table.sort("sample_id")
    size = cfg.mix.per_round
    return table if size is None else table.slice((cfg.round - 1) * size, size)
