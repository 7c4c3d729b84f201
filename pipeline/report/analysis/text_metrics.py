"""How a model writes, whatever its score: refusals, Markdown, repeated openings, wrong language.

Each is a figure of an answer, averaged by prompt first. Reasoning before the answer is left out.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.text import REFUSAL, guess_language, strip_reasoning

NGRAM = 3
OPENING_WORDS = 3
DISTINCT_WORDS = 50  # of each answer: over whole texts, longer answers would seem less varied
# Fewer characters do not reveal a language; more than the second bound add nothing.
MIN_CHARACTERS, MAX_CHARACTERS = 40, 1000
# Scripts written without spaces count by character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’]\w+)*")
# A heading, a list, bold words, a code fence or a table.
MARKDOWN = r"(?m)^\s{0,3}(#{1,6} |[-*+] |\d+[.)] |```|\|.+\|)|\*\*\S[^*\n]*\*\*"

ANSWER_TEXT = "answer_text"


def add_text_metrics(answers: pl.DataFrame) -> pl.DataFrame:
    """The answers with their metrics; `tokens` excludes the `reasoning_tokens`."""
    texts = pl.Series(
        ANSWER_TEXT, [strip_reasoning(text) for text in answers["completion"]], dtype=pl.String
    )
    return answers.with_columns(
        texts,
        tokens=pl.col("tokens") - pl.col("reasoning_tokens"),
        truncated=(pl.col("finish_reason") == "length").cast(pl.Float64),
        repetition=pl.Series([measure_repetition(text) for text in texts], dtype=pl.Float64),
        refusals=texts.str.contains(REFUSAL).cast(pl.Float64),
        markdown=texts.str.contains(MARKDOWN).cast(pl.Float64),
        opening=pl.Series([extract_opening(text) for text in texts], dtype=pl.String),
    )


def measure_repetition(text: str) -> float:
    """The share of an answer's word trigrams that occurred before in it."""
    ngrams = _list_ngrams(_split_words(text), NGRAM)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def extract_opening(text: str) -> str:
    return " ".join(_split_words(text)[:OPENING_WORDS])


def find_commonest_opening(answers: pl.DataFrame) -> dict[str, Any]:
    """The most common first words, and the share of prompts answered so; ties alphabetically."""
    if answers.is_empty():
        return {"text": None, "share": None}
    weighted = answers.with_columns(weight=1 / pl.len().over("prompt_id"))
    prompts = answers["prompt_id"].n_unique()
    shares = weighted.group_by("opening").agg(pl.col("weight").sum() / prompts)
    rounded = shares.with_columns(pl.col("weight").round(9))
    text, share = rounded.sort(["weight", "opening"], descending=[True, False]).row(0)
    return {"text": text, "share": share}


def measure_distinct(answers: pl.DataFrame) -> dict[str, float | None]:
    """Of all n-grams in the answers' beginnings, the share that differ: low for similar answers."""
    beginnings = [_split_words(text)[:DISTINCT_WORDS] for text in answers[ANSWER_TEXT]]
    return {str(n): _share_distinct(beginnings, n) for n in range(1, NGRAM + 1)}


def _share_distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    ngrams = Counter(ngram for words in texts for ngram in _list_ngrams(words, n))
    return len(ngrams) / ngrams.total() if ngrams else None


def measure_other_language(
    answers: pl.DataFrame, last_words: Mapping[str, str]
) -> dict[str, float]:
    """By prompt, the share of answers in another language than its own, without short texts."""
    asked_in = {
        key: guess_language(text[:MAX_CHARACTERS])
        for key, text in last_words.items()
        if len(text) >= MIN_CHARACTERS
    }
    differs: dict[str, list[bool]] = {}
    for key, text in answers.select("prompt_id", ANSWER_TEXT).iter_rows():
        if key in asked_in and len(text) >= MIN_CHARACTERS:
            answered_in = guess_language(text[:MAX_CHARACTERS])
            differs.setdefault(key, []).append(answered_in != asked_in[key])
    return {key: sum(flags) / len(flags) for key, flags in sorted(differs.items())}


def _split_words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _list_ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
