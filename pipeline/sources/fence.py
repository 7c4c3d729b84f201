"""Overlap with evaluation prompts: hashed word n-grams, blind to case, punctuation and how a letter is stored."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipeline.artifacts import Fence
from pipeline.sources.letters import folded

# Scripts that put no space between words: each of their characters counts as one.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_DENSE}]|[^\W_{_DENSE}]+")
SHOWN = 30  # words of a match


def grams(text: str, ngram: int) -> set[int]:
    """The hashes of every run of `ngram` words; a shorter text has one: itself, which no longer text contains."""
    words, width = _runs(text, ngram)
    return {_hash(words[i : i + width]) for i in range(len(words) - width + 1)}


def table(fenced: Iterable[int]) -> pl.DataFrame:
    return pl.DataFrame({"gram": sorted(fenced)}, schema={"gram": pl.UInt64})


class FenceCheck:
    """What a stage that brings in training data asks of each text."""

    def __init__(self, fence: Fence, ngram: int):
        self.ngram = ngram
        self._fenced = set(fence.read()["gram"])

    def overlaps(self, text: str) -> bool:
        return not self._fenced.isdisjoint(grams(text, self.ngram))


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
        self._ends: set[tuple[str, str]] = set()  # a gram's first and last word: few other runs need to be hashed

    @property
    def grams(self) -> Iterable[int]:
        return self._owner.keys()

    def add(self, of: str, prompt_id: str, turns: list[str]) -> None:
        """The user's words as a whole, and the opening alone; a later turn (`Why?`) means nothing by itself."""
        for text in ("\n".join(turns), turns[0]):
            words, width = _runs(text, self.ngram)
            self._ends.update(zip(words, words[width - 1 :], strict=False))
            for gram in grams(text, self.ngram):
                self._owner.setdefault(gram, (of, prompt_id))

    def match(self, texts: Iterable[str]) -> Match | None:
        """The first match with as many words in a row as the two share."""
        for text in texts:
            words, width = _runs(text, self.ngram)
            likely = (at for at, ends in enumerate(zip(words, words[width - 1 :], strict=False)) if ends in self._ends)
            owners = {at: owner for at in likely if (owner := self._owner.get(_hash(words[at : at + width])))}
            if owners:
                start = end = min(owners)
                while owners.get(end + 1) == owners[start]:
                    end += 1
                return Match(*owners[start], _shown(words[start : end + width]))
        return None


def _runs(text: str, ngram: int) -> tuple[list[str], int]:
    """A text's words and how many of them make a gram; of a short text all, and its two ends are part of them."""
    words = _WORD.findall(folded(text, "NFKC"))
    return (words, ngram) if len(words) >= ngram else (["^", *words, "$"], len(words) + 2)


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def _shown(words: list[str]) -> str:
    words = [word for word in words if word not in "^$"]
    return " ".join(words[:SHOWN]) + (f" … ({len(words)} words)" if len(words) > SHOWN else "")
