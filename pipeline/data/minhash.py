"""Near-duplicate texts, by the Jaccard overlap of their word triples.

MinHash finds the candidates, and each candidate's overlap is then counted exactly: an estimate from
128 permutations is off by 0.03 at an overlap of 0.9, and would drop texts that differ.
Memory is bounded: shingles exist for one batch of texts at a time, a signature is 512 bytes, and a
text is compared with two others of each bucket it falls into, however full that bucket is.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

WORDS = 3  # in a shingle
PERMUTATIONS = 128
BATCH = 8192  # texts
# Four standard errors of an estimate: further below the threshold nothing is counted exactly.
SLACK = 0.12
SEED = 20  # of the permutations
MIX = np.uint64(0x9E3779B97F4A7C15)


def find_nearest_above(texts: pl.Series, threshold: float) -> np.ndarray:
    """For each text a row above it with at least this overlap, or -1."""
    batches = [
        compute_signatures(texts.slice(start, BATCH)) for start in range(0, texts.len(), BATCH)
    ]
    signatures = np.concatenate([np.zeros((0, PERMUTATIONS), dtype=np.uint32), *batches])
    found = np.full(len(signatures), -1)
    earlier, later = _find_candidates(signatures, threshold)
    # Backwards: where several texts above are near, the first of them is written last.
    for start in reversed(range(0, len(later), BATCH)):
        batch = slice(start, start + BATCH)
        near = count_overlap(texts[earlier[batch]], texts[later[batch]]) >= threshold
        found[later[batch][near][::-1]] = earlier[batch][near][::-1]
    return found


def _find_candidates(signatures: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows whose estimate comes near the threshold, each once.

    In the order of the later row, then of the earlier one.
    """
    count = len(signatures)
    pairs = np.zeros(0, dtype=np.int64)
    for earlier, later in _bucket_pairs(signatures, threshold):
        met = np.unique(later.astype(np.int64) * count + earlier)
        met = np.setdiff1d(met, pairs, assume_unique=True)
        close = [np.zeros(0, dtype=bool)]
        for start in range(0, len(met), BATCH):
            batch = met[start : start + BATCH]
            estimates = _estimate_overlap(signatures[batch % count], signatures[batch // count])
            close.append(estimates >= threshold - SLACK)
        pairs = np.union1d(pairs, met[np.concatenate(close)])
    return pairs % max(count, 1), pairs // max(count, 1)


def compute_signatures(texts: pl.Series) -> np.ndarray:
    """One row of MinHash values for each text."""
    from rensa import RMinHash

    shingles, offsets = _hash_shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(texts.len(), PERMUTATIONS)


def _hash_shingles(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every run of WORDS words, text after text, and the offset of each text's first run.

    A shorter text is one run.
    """
    words = texts.str.to_lowercase().str.extract_all(r"\w+").to_frame("word")
    lists = words.select("word", length=pl.col("word").list.len()).with_row_index("text")
    flat = (
        lists.filter(pl.col("length") > 0)
        .explode("word")
        .select("text", "length", hash=pl.col("word").hash())
    )
    hashes, lengths = flat["hash"].to_numpy(), flat["length"].to_numpy()
    text_lengths = lists["length"].to_numpy()
    place = np.arange(len(hashes)) - _start_offsets(text_lengths)[flat["text"].to_numpy()]
    run = hashes.copy()
    with np.errstate(over="ignore"):
        for ahead in range(1, WORDS):
            following = np.append(hashes[ahead:], np.zeros(ahead, dtype=np.uint64))[: len(hashes)]
            run = run * MIX + np.where(place + ahead < lengths, following, np.uint64(0))
    counts = np.maximum(text_lengths.astype(np.int64) - WORDS + 1, text_lengths > 0)
    kept = place < np.maximum(lengths.astype(np.int64) - WORDS + 1, 1)
    return run[kept], np.append(_start_offsets(counts), counts.sum()).astype(np.uint64)


def _start_offsets(lengths: np.ndarray) -> np.ndarray:
    if not len(lengths):
        return lengths
    return np.concatenate([[0], np.cumsum(lengths.astype(np.int64))[:-1]])


def _bucket_pairs(
    signatures: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Band by band, each row with the first and with the nearest earlier row of its bucket."""
    # The widest band of `rows` values that still finds the overlaps looked for: with b bands the
    # probability of a meeting rises most steeply at (1 / b) ** (1 / rows).
    below = max(threshold - 0.1, 0.05)
    fitting = [rows for rows in (2, 4, 8, 16, 32) if (rows / PERMUTATIONS) ** (1 / rows) <= below]
    rows = max(fitting, default=1)
    for start in range(0, PERMUTATIONS, rows):
        columns = np.ascontiguousarray(signatures[:, start : start + rows])
        band = columns.view(f"V{4 * rows}").ravel()
        _, bucket = np.unique(band, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        same = np.append(False, bucket[order][1:] == bucket[order][:-1])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        yield order[later - 1], order[later]
        yield order[first[later]], order[later]


def _estimate_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one == other).mean(axis=1)


def count_overlap(one: pl.Series, other: pl.Series) -> np.ndarray:
    """The exact Jaccard overlap of each two texts' word triples; 1 where neither has a word."""
    sides = [_distinct_shingles(texts) for texts in (one, other)]
    pair, triple = (np.concatenate(columns) for columns in zip(*sides, strict=True))
    order = np.lexsort((triple, pair))
    pair, triple = pair[order], triple[order]
    shared = pair[1:][(pair[1:] == pair[:-1]) & (triple[1:] == triple[:-1])]
    common, both = (np.bincount(rows, minlength=one.len()) for rows in (shared, pair))
    return np.where(both > 0, common / np.maximum(both - common, 1), 1.0)


def _distinct_shingles(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Each text's row and each of its different triples."""
    shingles, offsets = _hash_shingles(texts)
    row = np.repeat(np.arange(texts.len()), np.diff(offsets.astype(np.int64)))
    order = np.lexsort((shingles, row))
    row, shingles = row[order], shingles[order]
    first = np.append(True, (row[1:] != row[:-1]) | (shingles[1:] != shingles[:-1]))[: len(row)]
    return row[first], shingles[first]
