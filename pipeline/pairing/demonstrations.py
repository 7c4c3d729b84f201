"""A prompt's own answer against a sample: it is chosen, though nobody sampled it and no scorer marked it."""

from collections.abc import Callable
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts
from pipeline.hashing import hash_json
from pipeline.pairing.selection import DEMONSTRATION, JUDGED

NONE = "no demonstration"
TOLD: dict[str, Any] = {
    "prompt_id": pl.String,
    "chosen_id": pl.String,
    "token_ids": pl.List(pl.Int64),
}

Messages = list[dict[str, str]]


def gold(column: str, asked: pl.DataFrame, prompts: Prompts) -> pl.DataFrame:
    """What this column of the prompts asked holds, as `text`; null where that is no answer."""
    columns = prompts.read_columns()
    texts = [columns.get(prompt_id, {}).get(column) for prompt_id in asked["prompt_id"]]
    usable = [text if isinstance(text, str) and text.strip() else None for text in texts]
    return asked.with_columns(text=pl.Series(usable, dtype=pl.String))


def in_tokens(gold: pl.DataFrame, tokens: Callable[[Messages, str], list[int]]) -> pl.DataFrame:
    """`prompt_id, chosen_id, chosen_text, token_ids` of the prompts that have one, as the policy would write it."""
    there = gold.drop_nulls("text")
    names = [
        hash_json([DEMONSTRATION, *row])[:16] for row in there.select("prompt_id", "text").rows()
    ]
    ids = [tokens(*row) for row in there.select("prompt", "text").rows()]
    told = pl.DataFrame(
        {"prompt_id": there["prompt_id"], "chosen_id": names, "token_ids": ids}, schema=TOLD
    )
    return told.with_columns(chosen_text=there["text"])


def over(pairs: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """The proposals with these as their chosen sides, which no scorer marked."""
    unscored = told.with_columns(
        chosen_tokens=pl.col("token_ids").list.len(),
        chosen_score=pl.lit(None, pl.Float64),
        margin=pl.lit(None, pl.Float64),
    )
    return pairs.join(unscored, on="prompt_id").select(*JUDGED).cast(JUDGED)  # type: ignore[arg-type]
