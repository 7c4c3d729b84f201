"""Answers and pairs that repeat, exactly or nearly (see minhash)."""

import numpy as np
import polars as pl

from pipeline.data import minhash
from pipeline.pairing.arrow_views import glance

COMPARED = 24  # samples of a prompt


# ── exact ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def repeats(rows: pl.DataFrame, among: np.ndarray) -> np.ndarray:
    """Which rows of `among` (a mask of `p, sample_id, completion`) repeat the text of a smaller id of their prompt."""
    numbers = rows["p"].to_numpy()
    suspects = np.flatnonzero(_neighbours(_shortened(glance(rows["completion"])), numbers) & among)
    hashes = _mixed(rows.select("p", "completion")[suspects], "p", "completion")
    suspects = suspects[_neighbours(hashes, numbers[suspects])]
    again = rows.select("p", "completion", "sample_id")[suspects].with_columns(at=suspects)
    again = again.sort("sample_id").filter(~pl.struct("p", "completion").is_first_distinct())
    return np.sort(again["at"].to_numpy())


def repeated(*columns: str) -> pl.Expr:
    """Rows whose columns equal those of a row above."""

    def search(packed: pl.Series) -> pl.Series:
        rows = packed.struct.unnest()
        suspects = np.arange(rows.height)
        for column in columns:  # few rows repeat the first one, and only they are looked at further
            hashes = _mixed(rows.select(column)[suspects], column)
            suspects = (
                suspects[pl.Series(hashes).is_duplicated().to_numpy()]
                if _any_twice(hashes)
                else suspects[:0]
            )
        mask = np.zeros(rows.height, dtype=bool)
        if len(suspects):
            mask[suspects] = (
                ~rows[suspects]
                .select(pl.struct(columns).is_first_distinct())
                .to_series()
                .to_numpy()
            )
        return pl.Series(mask)

    return pl.struct(columns).map_batches(search, return_dtype=pl.Boolean)


def _mixed(rows: pl.DataFrame, *columns: str) -> np.ndarray:
    """One hash for each row's columns: rows that differ in it differ, and the few others are compared in full."""
    mixed = np.zeros(rows.height, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for hashes in rows.select(pl.col(name).hash() for name in columns).iter_columns():
            mixed = (mixed ^ hashes.to_numpy()) * minhash.MIX
    return mixed


def _shortened(hashes: np.ndarray) -> np.ndarray:
    """Sixteen bits of each: they are compared faster, and few that differ become equal."""
    with np.errstate(over="ignore"):
        return (hashes * minhash.MIX).view(np.uint16)[3::4].copy()


def _any_twice(hashes: np.ndarray) -> bool:
    ordered = np.sort(hashes)
    return bool((ordered[1:] == ordered[:-1]).any())


def _neighbours(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which hashes come again. Rows of a group lie together, and a group of few is compared faster than looked up."""
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    largest = int(np.diff(np.append(starts, len(groups))).max(initial=1))
    if largest > COMPARED:
        return pl.Series(hashes).is_duplicated().to_numpy()
    mask = np.zeros(len(hashes), dtype=bool)
    for apart in range(1, largest):
        same = hashes[apart:] == hashes[:-apart]
        mask[apart:] |= same
        mask[:-apart] |= same
    return mask


# ── near ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def alike(one: str, other: str, least: float) -> pl.Expr:
    """Rows of which both texts have at least this overlap."""

    def search(packed: pl.Series) -> pl.Series:
        batches = packed.struct.unnest().iter_slices(minhash.BATCH)
        near = (minhash.overlap(rows[one], rows[other]) >= least for rows in batches)
        return pl.Series(np.concatenate([np.zeros(0, dtype=bool), *near]))

    return pl.struct(one, other).map_batches(search, return_dtype=pl.Boolean)


def near_earlier(prompt: str, answer: str, least: float) -> pl.Expr:
    """Rows whose prompt and answer together have at least this overlap with those of a row above."""

    def search(packed: pl.Series) -> pl.Series:
        rows = packed.struct.unnest()
        texts = rows.select(
            pl.concat_str([prompt, answer], separator=" ", ignore_nulls=True)
        ).to_series()
        return pl.Series(minhash.nearest_above(texts, least) >= 0)

    return pl.struct(prompt, answer).map_batches(search, return_dtype=pl.Boolean)
