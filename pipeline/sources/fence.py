"""Overlap with evaluation prompts: hashed word n-grams, blind to case and punctuation."""

import hashlib
import re
from collections.abc import Iterable

import polars as pl

from pipeline.artifacts import Fence

_WORD = re.compile(r"\w+")


def grams(text: str, ngram: int) -> set[int]:
    """The hashes of every run of `ngram` words; a shorter text has one: itself, which no longer text contains."""
    words = _WORD.findall(text.lower())
    if len(words) < ngram:
        return {_hash(["^", *words, "$"])}
    return {_hash(words[i : i + ngram]) for i in range(len(words) - ngram + 1)}


def grams_of(texts: Iterable[str], ngram: int) -> set[int]:
    return set().union(*(grams(text, ngram) for text in texts))


def table(fenced: set[int]) -> pl.DataFrame:
    return pl.DataFrame({"gram": sorted(fenced)}, schema={"gram": pl.UInt64})


def overlaps(text: str, fenced: set[int], ngram: int) -> bool:
    return not fenced.isdisjoint(grams(text, ngram))


class FenceCheck:
    """What a stage that brings in training data asks of each text."""

    def __init__(self, fence: Fence, ngram: int):
        self._ngram = ngram
        self._fenced = set(fence.read()["gram"])

    def overlaps(self, text: str) -> bool:
        return overlaps(text, self._fenced, self._ngram)


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")
