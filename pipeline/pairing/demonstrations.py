"""A prompt's own answer against a sample: chosen without being sampled or scored."""

from collections.abc import Callable
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts
from pipeline.hashing import hash_json
from pipeline.pairing.selection import DEMONSTRATION, FILTER_COLUMNS

NO_DEMONSTRATION = "no demonstration"
GOLD: dict[str, Any] = {
    "prompt_id": pl.String,
    "chosen_id": pl.String,
    "token_ids": pl.List(pl.Int64),
}

Messages = list[dict[str, str]]


def read_gold(column: str, asked: pl.DataFrame, prompts: Prompts) -> pl.DataFrame:
    """The prompts with this column's value as `text`; null where it is not an answer."""
    columns = prompts.read_columns()
    values = [columns.get(prompt_id, {}).get(column) for prompt_id in asked["prompt_id"]]
    texts = [value if isinstance(value, str) and value.strip() else None for value in values]
    return asked.with_columns(text=pl.Series(texts, dtype=pl.String))


def encode_gold(gold: pl.DataFrame, encode: Callable[[Messages, str], list[int]]) -> pl.DataFrame:
    """`prompt_id, chosen_id, token_ids, chosen_text` of the prompts that have an answer.

    `encode`: prompt and answer → the tokens that the policy would write.
    """
    there = gold.drop_nulls("text")
    rows = there.select("prompt_id", "text").rows()
    names = [hash_json([DEMONSTRATION, *row])[:16] for row in rows]
    ids = [encode(*row) for row in there.select("prompt", "text").rows()]
    columns: dict[str, Any] = {
        "prompt_id": there["prompt_id"],
        "chosen_id": names,
        "token_ids": ids,
    }
    return pl.DataFrame(columns, schema=GOLD).with_columns(chosen_text=there["text"])


def pair_with_gold(pairs: pl.DataFrame, gold: pl.DataFrame) -> pl.DataFrame:
    """The proposals with these answers, which have no score, as their chosen sides."""
    unscored = gold.with_columns(
        chosen_tokens=pl.col("token_ids").list.len(),
        chosen_score=pl.lit(None, pl.Float64),
        margin=pl.lit(None, pl.Float64),
        chosen_source=pl.lit(DEMONSTRATION),
    )
    table = pairs.join(unscored, on="prompt_id").select(*FILTER_COLUMNS)
    return table.cast(FILTER_COLUMNS)  # type: ignore[arg-type]
