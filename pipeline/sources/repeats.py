"""Prompts that repeat: the same but for case, punctuation and white space, or with nearly the same word triples.

Of prompts that repeat the first row stays. Arithmetic is no punctuation: `3 - 5` and `3 + 5` are two prompts.
"""

import re
import sys
import unicodedata

import polars as pl

from pipeline import minhash

_BEFORE, _AFTER = r"(?:(?<=\d)|(?<=\b[a-z]))", r"(?=\d|[a-z]\b)"
_SIGNS = {"-": "minus", "*": "times", "/": "over", ".": "point"}  # between numbers or names of one letter
_SIGN = re.compile(rf"{_BEFORE}\s?([-*/])\s?{_AFTER}|(?<=\d)(\.)(?=\d)|(?<![\w)])(-)(?=\d)")
_SYMBOLS = {
    "+": "plus",
    "=": "equals",
    "<": "less",
    ">": "greater",
    "^": "power",
    "%": "percent",
    "|": "bar",
    "~": "not",
}
_PLAIN = {
    **{code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P")},
    **{ord(symbol): f" {word} " for symbol, word in _SYMBOLS.items()},
}


def plain(text: str) -> str:
    """The words that remain when case, punctuation and white space are set aside; a text without words is itself."""
    spelled = _SIGN.sub(lambda found: f" {_SIGNS[found[found.lastindex or 0]]} ", text.casefold())
    return " ".join(spelled.translate(_PLAIN).split()) or text.strip()


def repeats(rows: pl.DataFrame, near: float | None) -> pl.DataFrame:
    """`prompt_id, reason, detail` and the row number `at` of every prompt that repeats one above it."""
    texts = [
        _compared(messages) for part in rows["prompt"].to_frame().iter_slices(4096) for messages in part.to_series()
    ]
    table = rows.select("prompt_id", text=pl.Series(texts, dtype=pl.String)).with_row_index("at")
    first = table.filter(pl.col("text").is_first_distinct())
    again = table.join(first.select("at"), on="at", how="anti", maintain_order="left")
    kept = again.join(first.select("text", kept="prompt_id"), on="text", maintain_order="left")
    found = [kept.select(*_told("duplicate", pl.format("the same words as {}", "kept")))]
    if near is not None:
        asked = first.filter(pl.col("text").str.contains(r"\w"))
        earlier = pl.Series(minhash.nearest_above(asked["text"], near))
        like = asked.with_columns(kept=asked["prompt_id"].gather(earlier.clip(0)), near=earlier >= 0).filter("near")
        found.append(like.select(*_told("near duplicate", pl.format("nearly the same words as {}", "kept"))))
    return pl.concat(found)


def _told(reason: str, detail: pl.Expr) -> list[pl.Expr]:
    return [pl.col("at"), pl.col("prompt_id"), pl.lit(reason).alias("reason"), detail.alias("detail")]


def _compared(messages: list[dict[str, str]]) -> str:
    """Every message counts: under another system prompt the same question is another prompt."""
    return " ".join(f"{message['role']} {plain(message['content'])}" for message in messages)
