"""Prompts that repeat: the same but for case, punctuation and white space, or with nearly the same word triples.

Of prompts that repeat the first row stays. Arithmetic is no punctuation: `3 - 5` and `3 + 5` are two prompts.
"""

import re
import sys
import unicodedata

import polars as pl

from pipeline.data import minhash
from pipeline.data.unicode import folded

BATCH = 4096

_BEFORE, _AFTER = r"(?:(?<=\d)|(?<=\b[a-z]))", r"(?=\d|[a-z]\b)"
_SIGNS = {
    "-": "minus",
    "*": "times",
    "/": "over",
    ".": "point",
}  # between numbers or names of one letter
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
    **{
        code: " "
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)).startswith("P")
    },
    **{ord(symbol): f" {word} " for symbol, word in _SYMBOLS.items()},
}


def plain(text: str) -> str:
    """The words that remain when case, punctuation and white space are set aside; a text without words is itself."""
    spelled = _SIGN.sub(
        lambda found: f" {_SIGNS[found[found.lastindex or 0]]} ", folded(text, "NFC")
    )
    return " ".join(spelled.translate(_PLAIN).split()) or text.strip()


def repeats(rows: pl.DataFrame, near: float | None) -> pl.DataFrame:
    """`prompt_id, reason, detail` and the row number `at` of every prompt that repeats one above it."""
    texts = (_compared(messages) for part in rows.iter_slices(BATCH) for messages in part["prompt"])
    table = pl.DataFrame(texts, schema={"system": pl.String, "said": pl.String}, orient="row")
    table = table.with_columns(rows["prompt_id"]).with_row_index("at")
    first = table.filter(pl.struct("system", "said").is_first_distinct())
    again = table.join(first.select("at"), on="at", how="anti", maintain_order="left")
    kept = first.select("system", "said", kept="prompt_id")
    same = again.join(kept, on=["system", "said"], maintain_order="left")
    found = [same.select(*_told("duplicate", "the same words as {}"))]
    if near is not None:
        found.append(_alike(first.filter(pl.col("said").str.contains(r"\w")), near))
    return pl.concat(found)


def _alike(asked: pl.DataFrame, near: float) -> pl.DataFrame:
    """By what was said: sharing a long system prompt makes no two prompts alike, and another one makes them differ."""
    earlier = pl.Series(minhash.nearest_above(asked["said"], near))
    partner = asked[earlier.clip(0)] if asked.height else asked
    like = asked.with_columns(kept=partner["prompt_id"], other=partner["system"])
    like = like.filter((earlier >= 0) & (pl.col("other") == pl.col("system")))
    return like.select(*_told("near duplicate", "nearly the same words as {}"))


def _told(reason: str, detail: str) -> list[pl.Expr]:
    return [
        pl.col("at"),
        pl.col("prompt_id"),
        pl.lit(reason).alias("reason"),
        pl.format(detail, "kept").alias("detail"),
    ]


def _compared(messages: list[dict[str, str]]) -> tuple[str, str]:
    """Its system prompt and what was said under it: the same question under another one is another prompt."""
    system = [plain(message["content"]) for message in messages if message["role"] == "system"]
    return " ".join(system), "\n".join(
        plain(message["content"]) for message in messages if message["role"] != "system"
    )
