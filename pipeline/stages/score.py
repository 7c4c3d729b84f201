"""Marks every completion with every scorer. A score that fails is null and counted, never 0.

Shard by shard, as the samples lie: a killed run marks again only the shard it was in.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, Prompts, Samples, Scores, note_cost, read_table, write_table
from pipeline.config import RuleScorer, ScoreConfig
from pipeline.errors import Broken
from pipeline.progress import Progress
from pipeline.scorers import rules

SCORE = {
    "sample_id": pl.String,
    "prompt_id": pl.String,
    "scorer": pl.String,
    "score": pl.Float64,
    "status": pl.String,
    "detail": pl.String,
}


def run(cfg: ScoreConfig, out: Path, *, samples: Samples, prompts: Prompts) -> Scores:
    columns = prompts.columns()
    shards = sorted((samples.path / "samples").glob("*.parquet"))
    progress = Progress("score", len(shards), "shards")
    for shard in shards:
        target = out / "scores" / shard.name
        if not target.exists():
            rows = read_table(shard).filter(pl.col("setting") != KL)
            write_table(target, marks(cfg, rows, columns))
        progress.advance()
    check_failures(cfg, out)
    return Scores(out)


def marks(cfg: ScoreConfig, rows: pl.DataFrame, columns: dict[str, dict[str, Any]]) -> pl.DataFrame:
    found = []
    for row in rows.select("sample_id", "prompt_id", "completion").iter_rows(named=True):
        for name, scorer in cfg.scorers.items():
            for mark in by_rule(scorer, name, row["completion"], columns[row["prompt_id"]]):
                found.append({"sample_id": row["sample_id"], "prompt_id": row["prompt_id"], **mark})
    return pl.DataFrame(found, schema=SCORE)


def by_rule(scorer: RuleScorer, name: str, completion: str, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One mark, and one for each criterion that applies to this prompt, as `name/criterion`."""
    try:
        scores = rules.RULES[scorer.rule](completion, columns)
    except Exception as error:  # a rule's fault must cost one score, not the run; it is counted against max_failed
        yield {"scorer": name, "score": None, "status": "failed", "detail": f"{type(error).__name__}: {error}"}
        return
    for criterion, score in scores.items():
        scorer_name = f"{name}/{criterion}" if criterion else name
        if math.isfinite(score):
            yield {"scorer": scorer_name, "score": float(score), "status": "ok", "detail": ""}
        else:
            yield {"scorer": scorer_name, "score": None, "status": "failed", "detail": f"the rule gave {score}"}


def check_failures(cfg: ScoreConfig, out: Path) -> None:
    table = Scores(out).read()
    failed = table.filter(pl.col("score").is_null())
    note_cost(out, scores=table.height, failed=failed.height)
    if failed.height <= cfg.max_failed * table.height:
        return
    write_table(out / "failed.parquet", failed)
    reason = failed["detail"].value_counts(sort=True)["detail"][0]
    raise Broken(
        f"{failed.height} of {table.height} scores failed (most often: {reason})."
        f" The limit is score.max_failed={cfg.max_failed}.\n  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or mend the scorer and run the same command again."
    )
