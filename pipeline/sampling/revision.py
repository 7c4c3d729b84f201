"""Revision: the prompts of its two turns; the revised answers as samples of the plain prompt."""

from pathlib import Path
from string import Template
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, Samples, read_table, write_table
from pipeline.config import RevisionRequest
from pipeline.data.columns import MESSAGES
from pipeline.sampling.collector import SAMPLE
from pipeline.sampling.multi_turn import append_turn
from pipeline.sampling.principles import draw_principle

PROMPTS: dict[str, Any] = {"prompt_id": pl.String, "prompt": MESSAGES, "columns": pl.String}


def read_first_answers(samples: Samples, setting: str) -> pl.DataFrame:
    """Each prompt's first sample of a setting."""
    return samples.read(setting).unique("prompt_id", keep="first", maintain_order=True)


def write_requests(
    cfg: RevisionRequest, request: str, principles: list[str], answers: pl.DataFrame, out: Path
) -> Prompts:
    """The prompts of a turn: the conversation so far, and what is asked of the last answer."""
    rows = []
    for prompt_id, prompt, completion in answers.select(
        "prompt_id", "prompt", "completion"
    ).iter_rows():
        principle = draw_principle(cfg, principles, prompt_id)
        asked = Template(request).substitute(principle=principle)
        rows.append((prompt_id, append_turn(prompt, completion, asked), "{}"))
    write_table(out / "prompts.parquet", pl.DataFrame(rows, schema=PROMPTS, orient="row"))
    return Prompts(out)


def publish_revised(out: Path, first: pl.DataFrame, revised: Samples) -> int:
    """Write the revised answers as samples of the plain prompt. Return how many there are."""
    plain = first.select("prompt_id", "prompt", "prompt_token_ids")
    asked = pl.coalesce("asked_token_ids", "prompt_token_ids")
    count = 0
    for file in sorted((revised.path / "samples").glob("*.parquet")):
        rows = read_table(file).with_columns(asked_token_ids=asked)
        rows = rows.drop("prompt", "prompt_token_ids").join(
            plain, on="prompt_id", how="left", maintain_order="left", validate="1:1"
        )
        write_table(out / "samples" / file.name, rows.select(*SAMPLE))
        count += rows.height
    return count
