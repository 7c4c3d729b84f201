"""Answers and pairs that repeat, exactly or nearly (see data/minhash.py)."""

import numpy as np
import polars as pl

from pipeline.data import minhash
from pipeline.pairing.arrow_views import length_and_prefix

MAX_COMPARED = 24  # samples of a prompt


# ── exact ────────────────────────────────────────────────────────────────────────────────────────


def find_repeats(rows: pl.DataFrame, compared: np.ndarray) -> np.ndarray:
    """Which rows repeat the text of a sample of their prompt with a smaller id.

    `compared`: the numbers of the rows (`p, sample_id, completion`) to compare, in the order of
    prompts.
    """
    numbers = rows["p"].to_numpy()
    prefixes = _shorten_hashes(length_and_prefix(rows["completion"]))[compared]
    suspects = compared[_find_suspects(prefixes, numbers[compared])]
    hashes = _hash_rows(rows.select("p", "completion")[suspects], "p", "completion")
    suspects = suspects[_find_suspects(hashes, numbers[suspects])]
    again = rows.select("p", "completion", "sample_id")[suspects].with_columns(at=suspects)
    again = again.sort("sample_id").filter(~pl.struct("p", "completion").is_first_distinct())
    return np.sort(again["at"].to_numpy())


def is_repeated(*columns: str) -> pl.Expr:
    """Rows whose columns equal those of a row above."""

    def search(packed: pl.Series) -> pl.Series:
        rows = packed.struct.unnest()
        suspects = np.arange(rows.height)
        for column in columns:  # few rows repeat in the first column; only these are compared on
            hashes = _hash_rows(rows.select(column)[suspects], column)
            if _has_repeats(hashes):
                suspects = suspects[pl.Series(hashes).is_duplicated().to_numpy()]
            else:
                suspects = suspects[:0]
        mask = np.zeros(rows.height, dtype=bool)
        if len(suspects):
            firsts = rows[suspects].select(pl.struct(columns).is_first_distinct()).to_series()
            mask[suspects] = ~firsts.to_numpy()
        return pl.Series(mask)

    return pl.struct(columns).map_batches(search, return_dtype=pl.Boolean)


def _hash_rows(rows: pl.DataFrame, *columns: str) -> np.ndarray:
    """One hash for each row's columns. Rows with equal hashes are compared in full later."""
    mixed = np.zeros(rows.height, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for hashes in rows.select(pl.col(name).hash() for name in columns).iter_columns():
            mixed = (mixed ^ hashes.to_numpy()) * minhash.MIX
    return mixed


def _shorten_hashes(hashes: np.ndarray) -> np.ndarray:
    """Sixteen bits of each: faster to compare, and few different ones become equal."""
    with np.errstate(over="ignore"):
        return (hashes * minhash.MIX).view(np.uint16)[3::4].copy()


def _has_repeats(hashes: np.ndarray) -> bool:
    ordered = np.sort(hashes)
    return bool((ordered[1:] == ordered[:-1]).any())


def _find_suspects(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which hashes may repeat in their group.

    Rows of a group are adjacent, and small groups are compared faster than looked up.
    """
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    largest = int(np.diff(np.append(starts, len(groups))).max(initial=1))
    if largest > MAX_COMPARED:
        return pl.Series(hashes).is_duplicated().to_numpy()
    mask = np.zeros(len(hashes), dtype=bool)
    for distance in range(1, largest):
        same = hashes[distance:] == hashes[:-distance]
        mask[distance:] |= same
        mask[:-distance] |= same
    return mask


# ── near ─────────────────────────────────────────────────────────────────────────────────────────


def is_near_duplicate(one: str, other: str, threshold: float) -> pl.Expr:
    """Rows whose two texts have at least this overlap."""

    def search(packed: pl.Series) -> pl.Series:
        batches = packed.struct.unnest().iter_slices(minhash.BATCH)
        near = [minhash.count_overlap(rows[one], rows[other]) >= threshold for rows in batches]
        return pl.Series(np.concatenate([np.zeros(0, dtype=bool), *near]))

    return pl.struct(one, other).map_batches(search, return_dtype=pl.Boolean)


def is_near_earlier(prompt: str, answer: str, threshold: float) -> pl.Expr:
    """Rows whose prompt and answer together have at least this overlap with a row above."""

    def search(packed: pl.Series) -> pl.Series:
        joined = pl.concat_str([prompt, answer], separator=" ", ignore_nulls=True)
        texts = packed.struct.unnest().select(joined).to_series()
        return pl.Series(minhash.find_nearest_above(texts, threshold) >= 0)

    return pl.struct(prompt, answer).map_batches(search, return_dtype=pl.Boolean)
