"""Texts that read nearly alike, by the Jaccard overlap of their word triples.

MinHash finds the candidates, and each candidate's overlap is then counted exactly: an estimate from 128 permutations is
off by 0.03 at an overlap of 0.9, and would drop texts that differ.
Memory is bounded: shingles exist for one batch of texts at a time, a signature is 512 bytes, and a text is compared
with two others of each bucket it falls into, however full that is.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

WORDS = 3  # in a shingle
PERMUTATIONS = 128
BATCH = 8192  # texts
SLACK = 0.12  # four standard errors of an estimate: below the threshold by more than this, nothing is counted exactly
SEED = 20  # of the permutations: the same estimate each time
MIX = np.uint64(0x9E3779B97F4A7C15)


def nearest_above(texts: pl.Series, least: float) -> np.ndarray:
    """For each text the row of one above with at least this overlap, or -1."""
    signed = [signatures(texts.slice(start, BATCH)) for start in range(0, texts.len(), BATCH)]
    whole = np.concatenate([np.zeros((0, PERMUTATIONS), dtype=np.uint32), *signed])
    found = np.full(len(whole), -1)
    earlier, later = _candidates(whole, least)
    for start in reversed(
        range(0, len(later), BATCH)
    ):  # where several above are near, the first of them is named
        batch = slice(start, start + BATCH)
        near = overlap(texts[earlier[batch]], texts[later[batch]]) >= least
        found[later[batch][near][::-1]] = earlier[batch][near][::-1]
    return found


def _candidates(whole: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows whose estimate comes near the threshold, each once, by the later and then by the earlier row."""
    pairs = np.zeros(0, dtype=np.int64)
    for earlier, later in _meetings(whole, least):
        met = np.unique(later.astype(np.int64) * len(whole) + earlier)
        met = np.setdiff1d(met, pairs, assume_unique=True)
        close = [
            _estimate(whole[batch % len(whole)], whole[batch // len(whole)]) >= least - SLACK
            for batch in (met[start : start + BATCH] for start in range(0, len(met), BATCH))
        ]
        pairs = np.union1d(pairs, met[np.concatenate([np.zeros(0, dtype=bool), *close])])
    return pairs % max(len(whole), 1), pairs // max(len(whole), 1)


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
    flat = (
        lists.filter(pl.col("length") > 0)
        .explode("word")
        .select("text", "length", hash=pl.col("word").hash())
    )
    hashes, lengths = flat["hash"].to_numpy(), flat["length"].to_numpy()
    place = np.arange(len(hashes)) - _starts(lists["length"].to_numpy())[flat["text"].to_numpy()]
    run = hashes.copy()
    with np.errstate(over="ignore"):
        for ahead in range(1, WORDS):
            following = np.append(hashes[ahead:], np.zeros(ahead, dtype=np.uint64))[: len(hashes)]
            run = run * MIX + np.where(place + ahead < lengths, following, np.uint64(0))
    counts = np.maximum(
        lists["length"].to_numpy().astype(np.int64) - WORDS + 1, lists["length"].to_numpy() > 0
    )
    kept = place < np.maximum(lengths.astype(np.int64) - WORDS + 1, 1)
    return run[kept], np.append(_starts(counts), counts.sum()).astype(np.uint64)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return (
        np.concatenate([[0], np.cumsum(lengths.astype(np.int64))[:-1]]) if len(lengths) else lengths
    )


def _meetings(whole: np.ndarray, least: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Band by band, each row with the first and with the nearest earlier row of its bucket."""
    rows = max(
        r
        for r in (1, 2, 4, 8, 16, 32)
        if (r / PERMUTATIONS) ** (1 / r) <= max(least - 0.1, 0.05) or r == 1
    )
    for start in range(0, PERMUTATIONS, rows):
        band = np.ascontiguousarray(whole[:, start : start + rows]).view(f"V{4 * rows}").ravel()
        _, bucket = np.unique(band, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        same = np.append(False, bucket[order][1:] == bucket[order][:-1])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        yield order[later - 1], order[later]
        yield order[first[later]], order[later]


def _estimate(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).mean(axis=1)


def overlap(one: pl.Series, other: pl.Series) -> np.ndarray:
    """The Jaccard overlap of each two texts' word triples, counted; two texts without any words are alike."""
    sides = [_distinct(texts) for texts in (one, other)]
    pair, triple = (np.concatenate(columns) for columns in zip(*sides, strict=True))
    order = np.lexsort((triple, pair))
    pair, triple = pair[order], triple[order]
    shared = pair[1:][(pair[1:] == pair[:-1]) & (triple[1:] == triple[:-1])]
    common, both = (np.bincount(rows, minlength=one.len()) for rows in (shared, pair))
    return np.where(both > 0, common / np.maximum(both - common, 1), 1.0)


def _distinct(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Each text's row and each of its different triples."""
    shingles, offsets = _shingles(texts)
    row = np.repeat(np.arange(texts.len()), np.diff(offsets.astype(np.int64)))
    order = np.lexsort((shingles, row))
    row, shingles = row[order], shingles[order]
    first = np.append(True, (row[1:] != row[:-1]) | (shingles[1:] != shingles[:-1]))[: len(row)]
    return row[first], shingles[first]
