"""Marks every completion with every scorer. A score that fails is null and counted, never 0.

Shard by shard, as the samples lie: a killed run marks again only the shard it was in.
"""

from collections import Counter
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, Model, Prompts, Samples, Scores, note_cost, read_table, write_table
from pipeline.config import BestScored, EnsembleScorer, ScoreConfig
from pipeline.errors import Broken, Refusal
from pipeline.progress import Progress
from pipeline.scorers import Answer, Mark, Paid, Scorer, open_scorer
from pipeline.scorers.ensemble import combined

SCORE = {
    "sample_id": pl.String,
    "prompt_id": pl.String,
    "scorer": pl.String,
    "score": pl.Float64,
    "status": pl.String,
    "detail": pl.String,
}


def run(
    cfg: ScoreConfig | BestScored,
    out: Path,
    *,
    samples: Samples,
    prompts: Prompts,
    reward: Model | None = None,
    best: Scores | None = None,
) -> Scores:
    columns = prompts.columns()
    wanted = best_of(cfg.best_by, best) if best and isinstance(cfg, BestScored) else None
    shards = sorted((samples.path / "samples").glob("*.parquet"))
    missing = [shard for shard in shards if not (out / "scores" / shard.name).exists()]
    progress = Progress("score", len(shards), "shards")
    progress.resume_at(len(shards) - len(missing))
    with ExitStack() as open_scorers:
        ensembles = {name: one for name, one in sorted(cfg.scorers.items()) if isinstance(one, EnsembleScorer)}
        single = {name: one for name, one in sorted(cfg.scorers.items()) if name not in ensembles}
        scorers = {name: open_scorer(one, reward) for name, one in single.items()}
        for scorer in scorers.values():
            open_scorers.callback(scorer.close)
        for shard in missing:
            rows = read_table(shard)
            answers = answers_of(rows if wanted is None else rows.join(wanted, on="sample_id", how="semi"), columns)
            write_table(out / "scores" / shard.name, marked(scorers, ensembles, answers))
            note_cost(out, **paid(scorers))
            progress.advance()
    check_opinions(out)
    check_failures(cfg, out)
    return Scores(out)


def best_of(scorer: str, scores: Scores) -> pl.DataFrame:
    """The answer of each prompt that a scorer marks highest, if it marked any; equal ones go by sample id."""
    known = scores.read().filter((pl.col("scorer") == scorer) & pl.col("score").is_not_null())
    ranked = known.sort("score", "sample_id", descending=[True, False])
    return ranked.unique("prompt_id", keep="first", maintain_order=True).select("sample_id")


def answers_of(rows: pl.DataFrame, columns: dict[str, dict[str, Any]]) -> list[Answer]:
    told = rows.filter(pl.col("setting") != KL).select(
        "sample_id", "prompt_id", "prompt", "completion", tokens=pl.col("token_ids").list.len()
    )
    return [Answer(**row, columns=columns[row["prompt_id"]]) for row in told.iter_rows(named=True)]


def marked(scorers: dict[str, Scorer], ensembles: dict[str, EnsembleScorer], answers: list[Answer]) -> pl.DataFrame:
    """A row for each mark, in the order of the answers; a criterion's scorer is `name/criterion`."""
    rows: dict[str, list[dict[str, Any]]] = {answer.sample_id: [] for answer in answers}
    prompt_of = {answer.sample_id: answer.prompt_id for answer in answers}
    whole: dict[str, dict[str, Mark]] = {}
    for name, marks in chain(
        ((name, scorer.mark(answers)) for name, scorer in scorers.items()),
        ((name, combined(ensemble, answers, whole)) for name, ensemble in ensembles.items()),
    ):
        whole[name] = {}
        for mark in marks:
            if not mark.criterion:
                whole[name][mark.sample_id] = mark
            rows[mark.sample_id].append(
                {
                    "sample_id": mark.sample_id,
                    "prompt_id": prompt_of[mark.sample_id],
                    "scorer": f"{name}/{mark.criterion}" if mark.criterion else name,
                    "score": mark.score,
                    "status": status_of(mark),
                    "detail": mark.detail,
                }
            )
    return pl.DataFrame(list(chain.from_iterable(rows.values())), schema=SCORE)


def _cut(table: pl.DataFrame) -> dict[str, int]:
    """Answers that a scorer saw without their beginning, as their details say."""
    cut = table.filter(pl.col("detail").str.contains('"cut": '))
    return {"cut": cut.height} if cut.height else {}


def paid(scorers: dict[str, Scorer]) -> dict[str, float]:
    """What the scorers have cost beside time, all together."""
    bill: Counter[str] = Counter()
    for scorer in scorers.values():
        bill.update(scorer.cost() if isinstance(scorer, Paid) else {})
    return dict(bill)


def status_of(mark: Mark) -> str:
    if mark.score is not None:
        return "ok"
    return "abstained" if mark.abstained else "failed"


def check_failures(cfg: ScoreConfig, out: Path) -> None:
    table = Scores(out).read()
    failed = table.filter(pl.col("status") == "failed")
    note_cost(out, scores=table.height, failed=failed.height, **_cut(table))
    if failed.height <= cfg.max_failed * table.height:
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    for shard in sorted((out / "scores").glob("*.parquet")):  # the same command marks these again
        if (read_table(shard)["status"] == "failed").any():
            shard.unlink()
    reason = failed["detail"].value_counts(sort=True)["detail"][0]
    raise Broken(
        f"{failed.height} of {table.height} scores failed (most often: {reason})."
        f" The limit is score.max_failed={cfg.max_failed}.\n  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or mend the scorer and run the same command again."
    )


def check_opinions(out: Path) -> None:
    """A scorer without an opinion on a single answer was given the labels, or the answers, of something else."""
    silent = Scores(out).read().group_by("scorer").agg((pl.col("status") == "abstained").all()).filter("status")
    for name in silent["scorer"].sort():
        raise Refusal(
            f"score.scorers.{name}: it has no opinion on any of these answers.\n"
            "  Labels hold for the very samples that people saw. Give labels of these, or take the scorer out."
        )
