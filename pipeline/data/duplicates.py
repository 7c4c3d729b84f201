"""Prompts that repeat: equal up to case, punctuation and white space, or nearly equal in triples.

Of repeated prompts the first row stays. Signs of arithmetic are kept: `3 - 5` and `3 + 5` are two
prompts.
"""

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

import polars as pl

from pipeline.data import minhash
from pipeline.data.jsonl import TOOLS
from pipeline.data.unicode import fold_text

BATCH = 4096
SHARED_ROLES = "system", TOOLS  # many prompts share these

# A sign counts between numbers or names of one letter.
_BEFORE, _AFTER = r"(?:(?<=\d)|(?<=\b[a-z]))", r"(?=\d|[a-z]\b)"
_SIGNS = {"-": "minus", "*": "times", "/": "over", ".": "point"}
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
_PUNCTUATION = [
    code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P")
]
_PLAIN = {
    **dict.fromkeys(_PUNCTUATION, " "),
    **{ord(symbol): f" {word} " for symbol, word in _SYMBOLS.items()},
}


def normalize_text(text: str) -> str:
    """The words without case, punctuation and white space; a text without words is unchanged."""

    def spell_sign(match: re.Match[str]) -> str:
        return f" {_SIGNS[match[match.lastindex or 0]]} "

    spelled = _SIGN.sub(spell_sign, fold_text(text, "NFC"))
    return " ".join(spelled.translate(_PLAIN).split()) or text.strip()


def find_duplicates(rows: pl.DataFrame, near_duplicate: float | None) -> pl.DataFrame:
    """Every prompt that repeats one above it.

    Columns: `at` (its row number), `prompt_id, reason, detail`. `near_duplicate`: the overlap of
    word triples from which two prompts are nearly equal.
    """
    batches = rows.iter_slices(BATCH)
    texts = (_comparison_texts(messages) for part in batches for messages in part["prompt"])
    table = pl.DataFrame(texts, schema={"system": pl.String, "turns": pl.String}, orient="row")
    table = table.with_columns(rows["prompt_id"]).with_row_index("at")
    first = table.filter(pl.struct("system", "turns").is_first_distinct())
    again = table.join(first.select("at"), on="at", how="anti", maintain_order="left")
    kept = first.select("system", "turns", kept="prompt_id")
    same = again.join(kept, on=["system", "turns"], maintain_order="left")
    found = [same.select(*_drop_columns("duplicate", "the same words as {}"))]
    if near_duplicate is not None:
        with_words = first.filter(pl.col("turns").str.contains(r"\w"))
        found.append(_find_near_duplicates(with_words, near_duplicate))
    return pl.concat(found)


def _find_near_duplicates(prompts: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Compares the turns alone.

    A shared long system prompt does not make two prompts alike; different ones keep them apart.
    """
    earlier = pl.Series(minhash.find_nearest_above(prompts["turns"], threshold))
    partner = prompts[earlier.clip(0)] if prompts.height else prompts
    pairs = prompts.with_columns(kept=partner["prompt_id"], other=partner["system"])
    near = pairs.filter((earlier >= 0) & (pl.col("other") == pl.col("system")))
    return near.select(*_drop_columns("near duplicate", "nearly the same words as {}"))


def find_demonstrated(rows: pl.DataFrame, turns: Iterable[list[str]]) -> pl.DataFrame:
    """Every prompt whose words of the user begin a demonstration; `turns`: the user's of each.

    Compared as duplicates are: by n-grams, as with evaluation prompts, a phrase that many prompts
    share would drop them all.
    """
    numbers: dict[bytes, int] = {}
    for number, texts in enumerate(turns, 1):
        spoken = ""
        for text in texts:
            spoken = f"{spoken}\n{text}" if spoken else text
            numbers.setdefault(_hash(spoken), number)
    asked = ("\n".join(texts) for texts in rows["asked"])
    matches = [(at, numbers.get(_hash(text))) for at, text in enumerate(asked)]
    found = [(at, f"demonstration {number}") for at, number in matches if number]
    schema: Any = {"at": pl.UInt32, "detail": pl.String}
    table = pl.DataFrame(found, schema=schema, orient="row")
    return table.with_columns(
        prompt_id=rows["prompt_id"].gather(table["at"]), reason=pl.lit("in the demonstrations")
    )


def _hash(text: str) -> bytes:
    return hashlib.blake2b(normalize_text(text).encode(), digest_size=16).digest()


def _drop_columns(reason: str, detail: str) -> list[pl.Expr]:
    return [
        pl.col("at"),
        pl.col("prompt_id"),
        pl.lit(reason).alias("reason"),
        pl.format(detail, "kept").alias("detail"),
    ]


def _comparison_texts(messages: list[dict[str, str]]) -> tuple[str, str]:
    """The system prompt with the tools, and the turns.

    Another system prompt or other tools make another prompt.
    """
    texts = [(message["role"], normalize_text(message["content"])) for message in messages]
    system = " ".join(text for role, text in texts if role in SHARED_ROLES)
    return system, "\n".join(text for role, text in texts if role not in SHARED_ROLES)
