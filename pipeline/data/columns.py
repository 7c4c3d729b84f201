"""The types of columns that several stages write."""

from typing import Any

import polars as pl

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCORES: dict[str, Any] = {
    "sample_id": pl.String,
    "prompt_id": pl.String,
    "scorer": pl.String,
    "score": pl.Float64,
    "status": pl.String,
    "detail": pl.String,
}
