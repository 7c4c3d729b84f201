"""How a model writes, whatever its score: refusals, Markdown, one opening for all, another language than asked in.

Each is a figure of an answer, averaged by prompt first. What a model thinks before it answers is no part of it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.text import REFUSAL, guess_language, strip_reasoning

NGRAM = 3
OPENING = 3  # words
DISTINCT = 50  # words of each answer: over whole texts, longer answers would seem poorer
FEWEST, MOST = 40, 1000  # characters that tell a language; more tell no more
# Scripts written without spaces count by character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)*")
# A heading, a list, bold words, a fence or a table.
MARKDOWN = r"(?m)^\s{0,3}(#{1,6} |[-*+] |\d+[.)] |```|\|.+\|)|\*\*\S[^*\n]*\*\*"

SAID = "said"


def with_habits(answers: pl.DataFrame) -> pl.DataFrame:
    """The answers with what each does; `tokens` are those of the answer, `reasoning_tokens` stand apart."""
    said = pl.Series(
        SAID, [strip_reasoning(text) for text in answers["completion"]], dtype=pl.String
    )
    return answers.with_columns(
        said,
        tokens=pl.col("tokens") - pl.col("reasoning_tokens"),
        truncated=(pl.col("finish_reason") == "length").cast(pl.Float64),
        repetition=pl.Series([repetition(text) for text in said], dtype=pl.Float64),
        refusals=said.str.contains(REFUSAL).cast(pl.Float64),
        markdown=said.str.contains(MARKDOWN).cast(pl.Float64),
        opening=pl.Series([opening(text) for text in said], dtype=pl.String),
    )


def repetition(text: str) -> float:
    """The share of an answer's word trigrams that it has used before."""
    found = _grams(_words(text), NGRAM)
    return 1 - len(set(found)) / len(found) if found else 0.0


def opening(text: str) -> str:
    return " ".join(_words(text)[:OPENING])


def commonest_opening(answers: pl.DataFrame) -> dict[str, Any]:
    """The first words that most answers share, and the share of prompts answered so; equal ones by spelling."""
    if answers.is_empty():
        return {"text": None, "share": None}
    weighed = answers.with_columns(weight=1 / pl.len().over("prompt_id"))
    shares = weighed.group_by("opening").agg(
        pl.col("weight").sum() / answers["prompt_id"].n_unique()
    )
    text, share = (
        shares.with_columns(pl.col("weight").round(9))
        .sort(["weight", "opening"], descending=[True, False])
        .row(0)
    )
    return {"text": text, "share": share}


def distinct(answers: pl.DataFrame) -> dict[str, float | None]:
    """Of all n-grams in the beginnings of a model's answers, the share that differ: low where all answers are alike."""
    begun = [_words(text)[:DISTINCT] for text in answers[SAID]]
    return {str(n): _share_distinct(begun, n) for n in range(1, NGRAM + 1)}


def _share_distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    grams = Counter(gram for words in texts for gram in _grams(words, n))
    return len(grams) / grams.total() if grams else None


def other_language(answers: pl.DataFrame, asked: Mapping[str, str]) -> dict[str, float]:
    """By prompt the share of answers in another language than its own, among texts long enough to tell."""
    spoken = {
        key: guess_language(text[:MOST]) for key, text in asked.items() if len(text) >= FEWEST
    }
    told: dict[str, list[bool]] = {}
    for key, text in answers.select("prompt_id", SAID).iter_rows():
        if key in spoken and len(text) >= FEWEST:
            told.setdefault(key, []).append(guess_language(text[:MOST]) != spoken[key])
    return {key: sum(found) / len(found) for key, found in sorted(told.items())}


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
