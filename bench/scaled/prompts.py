"""SCALED_PROMPTS: how many prompts `train` has. Their text is of a usual length."""

import os
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, write_table
from pipeline.config import PromptsConfig

TEXT = "Write {} lines about a quiet river, an old mill and the copper lantern at its door."


def run(cfg: PromptsConfig, out: Path, **_: Any) -> Prompts:
    numbers = pl.Series("at", range(int(os.environ["SCALED_PROMPTS"])), dtype=pl.Int64)
    text = pl.format(TEXT, "at")
    message = pl.struct(role=pl.lit("user"), content=text)
    table = numbers.to_frame().select(
        prompt_id=pl.format("p{}", pl.col("at").cast(pl.String).str.zfill(8)),
        prompt=pl.concat_list(message),
        columns=pl.lit("{}"),
    )
    write_table(out / "train" / "prompts.parquet", table)
    return Prompts(out)
