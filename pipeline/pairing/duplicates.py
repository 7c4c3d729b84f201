"""Texts that repeat, exactly or nearly. Near means: MinHash's estimate of the Jaccard overlap of word triples.

Memory is bounded: shingles exist for one batch of texts at a time, a signature is 512 bytes, and a text is compared
with two others of each bucket it falls into, however full that is.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

WORDS = 3  # in a shingle
PERMUTATIONS = 128
BATCH = 8192  # texts
COMPARED = 24  # samples of a prompt
SEED = 20  # of the permutations: the same estimate each time
MIX = np.uint64(0x9E3779B97F4A7C15)


# ── exact ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def repeats(rows: pl.DataFrame, among: np.ndarray) -> np.ndarray:
    """Which of `among` (places in `p, sample_id, completion`) repeat the text of a smaller id of their prompt there."""
    hashes, numbers = _mixed(rows, "p", "completion")[among], rows["p"].to_numpy()[among]
    suspects = among[_neighbours(hashes, numbers)]
    again = rows.select("p", "completion", "sample_id")[suspects].with_columns(at=suspects)
    again = again.sort("sample_id").filter(~pl.struct("p", "completion").is_first_distinct())
    return np.sort(again["at"].to_numpy())


def repeated(*columns: str) -> pl.Expr:
    """Rows whose columns equal those of a row above."""

    def search(packed: pl.Series) -> pl.Series:
        rows = packed.struct.unnest()
        suspects = np.arange(rows.height)
        for column in columns:  # few rows repeat the first one, and only they are looked at further
            again = pl.Series(_mixed(rows[suspects], column)).is_duplicated().to_numpy()
            suspects = suspects[again]
        mask = np.zeros(rows.height, dtype=bool)
        if len(suspects):
            mask[suspects] = ~rows[suspects].select(pl.struct(columns).is_first_distinct()).to_series().to_numpy()
        return pl.Series(mask)

    return pl.struct(columns).map_batches(search, return_dtype=pl.Boolean)


def _mixed(rows: pl.DataFrame, *columns: str) -> np.ndarray:
    """One hash for each row's columns: rows that differ in it differ, and the few others are compared in full."""
    mixed = np.zeros(rows.height, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for hashes in rows.select(pl.col(name).hash() for name in columns).iter_columns():
            mixed = (mixed ^ hashes.to_numpy()) * MIX
    return mixed


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
        batches = packed.struct.unnest().iter_slices(BATCH)
        found = [_overlap(signatures(rows[one]), signatures(rows[other])) >= least for rows in batches]
        return pl.Series(np.concatenate([np.zeros(0, dtype=bool), *found]))

    return pl.struct(one, other).map_batches(search, return_dtype=pl.Boolean)


def near_earlier(prompt: str, answer: str, least: float) -> pl.Expr:
    """Rows whose prompt and answer together have at least this overlap with those of a row above."""

    def search(packed: pl.Series) -> pl.Series:
        rows = packed.struct.unnest()
        texts = rows.select(pl.concat_str([prompt, answer], separator=" ", ignore_nulls=True)).to_series()
        return pl.Series(near_above(texts, least))

    return pl.struct(prompt, answer).map_batches(search, return_dtype=pl.Boolean)


def near_above(texts: pl.Series, least: float) -> np.ndarray:
    signed = [signatures(texts.slice(start, BATCH)) for start in range(0, texts.len(), BATCH)]
    whole = np.concatenate([np.zeros((0, PERMUTATIONS), dtype=np.uint32), *signed])
    mask = np.zeros(len(whole), dtype=bool)
    for earlier, later in _meetings(whole, least):
        for start in range(0, len(later), BATCH):
            batch = slice(start, start + BATCH)
            mask[later[batch][_overlap(whole[earlier[batch]], whole[later[batch]]) >= least]] = True
    return mask


def signatures(texts: pl.Series) -> np.ndarray:
    """One row of MinHash values for each text."""
    from rensa import RMinHash

    shingles, offsets = _shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(texts.len(), PERMUTATIONS)


def _shingles(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every run of WORDS words, text after text, and where each text's begin; a shorter text is one run."""
    words = texts.str.to_lowercase().str.extract_all(r"\w+").to_frame("word")
    lists = words.select("word", length=pl.col("word").list.len()).with_row_index("text")
    flat = lists.filter(pl.col("length") > 0).explode("word").select("text", "length", hash=pl.col("word").hash())
    hashes, lengths = flat["hash"].to_numpy(), flat["length"].to_numpy()
    place = np.arange(len(hashes)) - _starts(lists["length"].to_numpy())[flat["text"].to_numpy()]
    run = hashes.copy()
    with np.errstate(over="ignore"):
        for ahead in range(1, WORDS):
            following = np.append(hashes[ahead:], np.zeros(ahead, dtype=np.uint64))[: len(hashes)]
            run = run * MIX + np.where(place + ahead < lengths, following, np.uint64(0))
    counts = np.maximum(lists["length"].to_numpy().astype(np.int64) - WORDS + 1, lists["length"].to_numpy() > 0)
    kept = place < np.maximum(lengths.astype(np.int64) - WORDS + 1, 1)
    return run[kept], np.append(_starts(counts), counts.sum()).astype(np.uint64)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths.astype(np.int64))[:-1]]) if len(lengths) else lengths


def _meetings(whole: np.ndarray, least: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Band by band, each row with the first and with the nearest earlier row of its bucket."""
    rows = max(r for r in (1, 2, 4, 8, 16, 32) if (r / PERMUTATIONS) ** (1 / r) <= max(least - 0.1, 0.05) or r == 1)
    for start in range(0, PERMUTATIONS, rows):
        band = np.ascontiguousarray(whole[:, start : start + rows]).view(f"V{4 * rows}").ravel()
        _, bucket = np.unique(band, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        same = np.append(False, bucket[order][1:] == bucket[order][:-1])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        yield order[later - 1], order[later]
        yield order[first[later]], order[later]


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).mean(axis=1)
