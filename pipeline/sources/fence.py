"""Overlap with evaluation prompts: hashed word n-grams, blind to case and punctuation."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipeline.artifacts import Fence

# Scripts that put no space between words: each of their characters counts as one.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_DENSE}]|[^\W{_DENSE}]+")
SHOWN = 30  # words of a match


def grams(text: str, ngram: int) -> set[int]:
    """The hashes of every run of `ngram` words; a shorter text has one: itself, which no longer text contains."""
    return set(_in_order(_WORD.findall(text.lower()), ngram))


def grams_of(texts: Iterable[str], ngram: int) -> set[int]:
    return set().union(*(grams(text, ngram) for text in texts))


def table(fenced: Iterable[int]) -> pl.DataFrame:
    return pl.DataFrame({"gram": sorted(fenced)}, schema={"gram": pl.UInt64})


class FenceCheck:
    """What a stage that brings in training data asks of each text."""

    def __init__(self, fence: Fence, ngram: int):
        self._ngram = ngram
        self._fenced = set(fence.read()["gram"])

    def overlaps(self, text: str) -> bool:
        return not self._fenced.isdisjoint(grams(text, self._ngram))


@dataclass(frozen=True)
class Match:
    """Which evaluation prompt a text shares words with, and which words."""

    of: str
    prompt_id: str
    words: str


class Index:
    """The n-grams of evaluation prompts, each with the first prompt that has it."""

    def __init__(self, ngram: int):
        self.ngram = ngram
        self._owner: dict[int, tuple[str, str]] = {}

    @property
    def grams(self) -> Iterable[int]:
        return self._owner.keys()

    def add(self, of: str, prompt_id: str, turns: list[str]) -> None:
        """The user's words as a whole, and the opening alone; a later turn (`Why?`) means nothing by itself."""
        for text in ("\n".join(turns), turns[0]):
            for gram in grams(text, self.ngram):
                self._owner.setdefault(gram, (of, prompt_id))

    def match(self, texts: Iterable[str]) -> Match | None:
        """The first match with as many words in a row as the two share."""
        for text in texts:
            words = _WORD.findall(text.lower())
            hashes = _in_order(words, self.ngram)
            for start, gram in enumerate(hashes):
                if owner := self._owner.get(gram):
                    end = start
                    while end + 1 < len(hashes) and self._owner.get(hashes[end + 1]) == owner:
                        end += 1
                    return Match(*owner, _shown(words[start : end + self.ngram]))
        return None


def _in_order(words: list[str], ngram: int) -> list[int]:
    if len(words) < ngram:
        return [_hash(["^", *words, "$"])]
    return [_hash(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def _shown(words: list[str]) -> str:
    return " ".join(words[:SHOWN]) + (f" … ({len(words)} words)" if len(words) > SHOWN else "")
