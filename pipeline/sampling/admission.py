"""Which prompts are drawn from: the round's block, and of it what fits. A prompt is dropped and counted, never cut."""

from typing import Any

import polars as pl

from pipeline.artifacts import Prompts
from pipeline.backends import Text
from pipeline.config import Draw
from pipeline.errors import Refusal

DROPPED: dict[str, Any] = {"prompt_id": pl.String, "reason": pl.String, "detail": pl.String}


def block(cfg: Draw, prompts: Prompts) -> pl.DataFrame:
    """This round's prompts: all of them, or the round's block in the order they lie in."""
    rows = prompts.read().select("prompt_id", "prompt")
    if cfg.per_round is None:
        return rows
    if short := cfg.short_of(rows.height):
        raise Refusal(short)
    return rows.slice((cfg.round - 1) * cfg.per_round, cfg.per_round)


def admitted(cfg: Draw, text: Text, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompts that fit, by id, and the list of those that do not: a prompt is never cut."""
    rows = rows.sort("prompt_id")
    faults = []
    for row in rows.iter_rows(named=True):
        if fault := too_long(cfg, text.context, len(text.encode(row["prompt"], cfg.template_kwargs))):
            faults.append({"prompt_id": row["prompt_id"], **fault})
    dropped = pl.DataFrame(faults, schema=DROPPED)
    if dropped.height == rows.height:
        example = f" (the first has {faults[0]['detail']})" if faults else ""
        raise Refusal(
            f"sample: none of {rows.height} prompts can be drawn from{example}.\n"
            f"  Raise limits.prompt, lower limits.completion, or give shorter prompts."
        )
    kept = rows.join(dropped, on="prompt_id", how="anti", maintain_order="left") if faults else rows
    return kept, dropped


def too_long(cfg: Draw, context: int | None, tokens: int) -> dict[str, str] | None:
    if tokens > cfg.limits.prompt:
        return {"reason": "prompt_too_long", "detail": f"{tokens} tokens, limits.prompt={cfg.limits.prompt}"}
    if context is not None and tokens + cfg.limits.completion > context:
        detail = f"{tokens} tokens, limits.completion={cfg.limits.completion}, a context of {context}"
        return {"reason": "context_too_short", "detail": detail}
    return None
