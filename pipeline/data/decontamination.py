"""Overlap with evaluation prompts: hashed word n-grams, blind to case, punctuation and how a letter is stored.

A prompt shorter than the n-gram is found as a whole: inside a longer text from `LEAST` words on, below that only where
the text is nothing else.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipeline.artifacts import Decontamination
from pipeline.data.unicode import folded

# Scripts that put no space between words: each of their characters counts as one.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_DENSE}]|[^\W_{_DENSE}]+")
# Words that two texts hardly share by chance: with fewer, such as `write a poem about the sea`, many begin alike.
LEAST = 8
WHOLE = 0  # the width of a text that is compared from its first to its last word
SHOWN = 30  # words of a match

Gram = tuple[
    int, int, int
]  # a hash, of how many words, and the hash of the first few: one look tells most texts apart


def grams(text: str, ngram: int) -> set[Gram]:
    """What a text may share with no training text: each run of `ngram` words; of a shorter text all its words."""
    words = _words(text)
    if len(words) >= ngram:
        return {_gram(words[at : at + ngram]) for at in range(len(words) - ngram + 1)}
    inside = {_gram(words)} if len(words) >= LEAST else set()
    return {_whole(words), *inside}


def table(fenced: Iterable[Gram]) -> pl.DataFrame:
    schema = {"gram": pl.UInt64, "words": pl.UInt16, "opening": pl.UInt64}
    return pl.DataFrame(sorted(fenced), schema=schema, orient="row")


class OverlapCheck:
    """What a stage that brings in training data asks of each text."""

    def __init__(self, fence: Decontamination, ngram: int):
        known = fence.read()
        self._ngram = ngram
        self._fenced: set[Gram] = set(known.rows())
        self._openings = set(known["opening"])
        self._widths = set(known["words"]) - {WHOLE}
        self.fault = (
            f"shares {ngram} words in a row with an evaluation prompt, or all of a shorter one"
        )

    def overlaps(self, text: str) -> bool:
        words = _words(text)
        if len(words) < self._ngram and _whole(words) in self._fenced:
            return True
        few = min(LEAST, self._ngram)
        starts = (
            at
            for at in range(len(words) - few + 1)
            if _hash(words[at : at + few]) in self._openings
        )
        return any(
            _gram(words[at : at + width]) in self._fenced for at in starts for width in self._widths
        )


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
        self._owner: dict[Gram, tuple[str, str]] = {}
        # By width a run's first and last word: few other runs need to be hashed.
        self._ends: dict[int, set[tuple[str, str]]] = {}

    @property
    def grams(self) -> Iterable[Gram]:
        return self._owner.keys()

    def add(self, of: str, prompt_id: str, turns: list[str]) -> None:
        """The user's words as a whole, and the opening alone; a later turn (`Why?`) means nothing by itself."""
        for text in ("\n".join(turns), turns[0]):
            words = _words(text)
            for gram in grams(text, self.ngram):
                self._owner.setdefault(gram, (of, prompt_id))
            width = min(len(words), self.ngram)
            if width >= min(LEAST, self.ngram):
                self._ends.setdefault(width, set()).update(
                    zip(words, words[width - 1 :], strict=False)
                )

    def match(self, texts: Iterable[str]) -> Match | None:
        """The first match with as many words in a row as the two share."""
        for text in texts:
            words = _words(text)
            if len(words) < self.ngram and (owner := self._owner.get(_whole(words))):
                return Match(*owner, _shown(words))
            for width in sorted(self._ends, reverse=True):
                if found := self._longest(words, width):
                    return found
        return None

    def _longest(self, words: list[str], width: int) -> Match | None:
        ends = enumerate(zip(words, words[width - 1 :], strict=False))
        likely = (at for at, pair in ends if pair in self._ends[width])
        owners = {
            at: owner for at in likely if (owner := self._owner.get(_gram(words[at : at + width])))
        }
        if not owners:
            return None
        start = end = min(owners)
        while owners.get(end + 1) == owners[start]:
            end += 1
        return Match(*owners[start], _shown(words[start : end + width]))


def _words(text: str) -> list[str]:
    return _WORD.findall(folded(text, "NFKC"))


def _gram(words: list[str]) -> Gram:
    return _hash(words), len(words), _hash(words[:LEAST])


def _whole(words: list[str]) -> Gram:
    return _hash(["^", *words, "$"]), WHOLE, 0


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def _shown(words: list[str]) -> str:
    return " ".join(words[:SHOWN]) + (f" … ({len(words)} words)" if len(words) > SHOWN else "")
