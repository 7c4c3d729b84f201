"""Overlap with evaluation prompts: hashed word n-grams, blind to case, punctuation and encoding.

A prompt with fewer words than the n-gram is compared as a whole: from `MIN_WORDS` words on it is
found inside longer texts, below that only in a text of exactly these words.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from pipeline.artifacts import Decontamination
from pipeline.data.unicode import fold_text

# Scripts that put no space between words: each of their characters counts as one.
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_DENSE}]|[^\W_{_DENSE}]+")
# Two texts rarely share this many words by chance. With fewer, many texts begin alike, such as
# `write a poem about the sea`.
MIN_WORDS = 8
WHOLE_TEXT = 0  # the width of a text that is compared from its first to its last word
SHOWN = 30  # words of a match

# A hash, its number of words, and the hash of the first few words, which rules most texts out.
Ngram = tuple[int, int, int]


def hash_ngrams(text: str, ngram: int) -> set[Ngram]:
    """Of each run of `ngram` words; of a shorter text the hash of all its words."""
    words = _split_words(text)
    if len(words) >= ngram:
        return {_hash_ngram(words[at : at + ngram]) for at in range(len(words) - ngram + 1)}
    inside = {_hash_ngram(words)} if len(words) >= MIN_WORDS else set()
    return {_hash_text(words), *inside}


def ngram_table(ngrams: Iterable[Ngram]) -> pl.DataFrame:
    schema = {"gram": pl.UInt64, "words": pl.UInt16, "opening": pl.UInt64}
    return pl.DataFrame(sorted(ngrams), schema=schema, orient="row")


class OverlapCheck:
    """Whether a training text shares an n-gram with an evaluation prompt."""

    def __init__(self, decontamination: Decontamination, ngram: int):
        table = decontamination.read()
        self._ngram = ngram
        self._ngrams: set[Ngram] = set(table.rows())
        self._openings = set(table["opening"])
        self._widths = set(table["words"]) - {WHOLE_TEXT}
        self.fault = (
            f"shares {ngram} words in a row with an evaluation prompt, or all of a shorter one"
        )

    def overlaps(self, text: str) -> bool:
        words = _split_words(text)
        if len(words) < self._ngram and _hash_text(words) in self._ngrams:
            return True
        few = min(MIN_WORDS, self._ngram)
        starts = [
            at
            for at in range(len(words) - few + 1)
            if _hash(words[at : at + few]) in self._openings
        ]
        return any(
            _hash_ngram(words[at : at + width]) in self._ngrams
            for at in starts
            for width in self._widths
        )


@dataclass(frozen=True)
class OverlapMatch:
    """Which evaluation prompt a text shares words with, and which words."""

    part: str
    prompt_id: str
    words: str


class OverlapIndex:
    """The n-grams of evaluation prompts, each with the first prompt that has it."""

    def __init__(self, ngram: int):
        self.ngram = ngram
        self._owner: dict[Ngram, tuple[str, str]] = {}
        # First and last word of each run, by the run's width: few other runs need to be hashed.
        self._ends: dict[int, set[tuple[str, str]]] = {}

    @property
    def ngrams(self) -> Iterable[Ngram]:
        return self._owner.keys()

    def add(self, part: str, prompt_id: str, turns: list[str]) -> None:
        """Add the user's words as a whole, and the first turn alone.

        A later turn (`Why?`) means nothing by itself.
        """
        for text in ("\n".join(turns), turns[0]):
            words = _split_words(text)
            for ngram in hash_ngrams(text, self.ngram):
                self._owner.setdefault(ngram, (part, prompt_id))
            width = min(len(words), self.ngram)
            if width >= min(MIN_WORDS, self.ngram):
                ends = zip(words, words[width - 1 :], strict=False)
                self._ends.setdefault(width, set()).update(ends)

    def find(self, texts: Iterable[str]) -> OverlapMatch | None:
        """The first match, with all the words in a row that the two texts share."""
        for text in texts:
            words = _split_words(text)
            if len(words) < self.ngram and (owner := self._owner.get(_hash_text(words))):
                return OverlapMatch(*owner, _shorten(words))
            for width in sorted(self._ends, reverse=True):
                if found := self._find_longest(words, width):
                    return found
        return None

    def _find_longest(self, words: list[str], width: int) -> OverlapMatch | None:
        ends = enumerate(zip(words, words[width - 1 :], strict=False))
        likely = [at for at, pair in ends if pair in self._ends[width]]
        candidates = {at: self._owner.get(_hash_ngram(words[at : at + width])) for at in likely}
        owners = {at: owner for at, owner in candidates.items() if owner}
        if not owners:
            return None
        start = end = min(owners)
        while owners.get(end + 1) == owners[start]:
            end += 1
        return OverlapMatch(*owners[start], _shorten(words[start : end + width]))


def _split_words(text: str) -> list[str]:
    return _WORD.findall(fold_text(text, "NFKC"))


def _hash_ngram(words: list[str]) -> Ngram:
    return _hash(words), len(words), _hash(words[:MIN_WORDS])


def _hash_text(words: list[str]) -> Ngram:
    return _hash(["^", *words, "$"]), WHOLE_TEXT, 0


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def _shorten(words: list[str]) -> str:
    return " ".join(words[:SHOWN]) + (f" … ({len(words)} words)" if len(words) > SHOWN else "")
