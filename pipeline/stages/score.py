"""Marks every completion with every scorer. A score that fails is null and counted, never 0.

Shard by shard, as the samples lie: a killed run marks again only the shards it was in. Models that
run here mark first, by as many hands as there are; everything else marks in this process, since it
keeps its own requests or processes.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    KL,
    Model,
    Prompts,
    Samples,
    Scores,
    knob_of,
    note_cost,
    read_table,
    write_table,
)
from pipeline.config import BestScored, EnsembleScorer, ScoreConfig, ScorerConfig
from pipeline.errors import StageError, UserError, many
from pipeline.progress import Progress, say_phase
from pipeline.resources.gpu_sets import worker_environments
from pipeline.resources.worker_pool import Worker, run_shards
from pipeline.scorers import Answer, Paid, Score, Scorer, open_scorer
from pipeline.scorers.ensemble import combined

KNOB = "score"  # of its block, where the driver names none
SCORE = {
    "sample_id": pl.String,
    "prompt_id": pl.String,
    "scorer": pl.String,
    "score": pl.Float64,
    "status": pl.String,
    "detail": pl.String,
}
MARK = {
    "scorer": pl.String,
    "sample_id": pl.String,
    "score": pl.Float64,
    "criterion": pl.String,
    "detail": pl.String,
    "abstained": pl.Boolean,
}
MARKS = "scratch/marks"  # of the models that run here, until the others' stand beside them
Marked = dict[str, list[Score]]  # by scorer
Begun = tuple[str, list[Answer], dict[str, Iterator[Score]]]  # a shard, and its marks as they come


def run(
    cfg: ScoreConfig | BestScored,
    out: Path,
    *,
    samples: Samples,
    prompts: Prompts,
    reward: Model | None = None,
    best: Scores | None = None,
) -> Scores:
    told = Told(
        samples,
        prompts,
        best_of(cfg.best_by, best) if best and isinstance(cfg, BestScored) else None,
    )
    shards = sorted(path.name for path in (samples.path / "samples").glob("*.parquet"))
    missing = [shard for shard in shards if not (out / "scores" / shard).exists()]
    bill = mark_by_hands(cfg, out, told, reward, missing)
    progress = Progress("score", len(shards), "shards")
    progress.resume_at(len(shards) - len(missing))
    with opened(cfg.others, reward, out) as scorers:
        for shard, answers, coming in begun(missing, told, scorers):
            marks = read_marks(out / MARKS / shard) if cfg.local else {}
            marks |= {name: [*each] for name, each in coming.items()}
            write_table(out / "scores" / shard, table_of(marks, cfg.ensembles, answers))
            note_cost(out, **total(bill, paid(scorers)))
            progress.advance()
    check_opinions(out)
    check_failures(cfg, out)
    return Scores(out)


@dataclass(frozen=True)
class Told:
    """The answers of each shard, with what their prompts tell of them."""

    samples: Samples
    prompts: Prompts
    wanted: pl.DataFrame | None  # the sample ids that are asked for; None: all

    @cached_property
    def _columns(self) -> dict[str, dict[str, Any]]:
        return self.prompts.columns()

    def answers(self, shard: str) -> list[Answer]:
        rows = read_table(self.samples.path / "samples" / shard)
        rows = rows if self.wanted is None else rows.join(self.wanted, on="sample_id", how="semi")
        told = rows.filter(pl.col("setting") != KL).select(
            "sample_id", "prompt_id", "prompt", "completion", tokens=pl.col("token_ids").list.len()
        )
        return [
            Answer(**row, columns=self._columns[row["prompt_id"]])
            for row in told.iter_rows(named=True)
        ]


def best_of(scorer: str, scores: Scores) -> pl.DataFrame:
    """The answer of each prompt that a scorer marks highest, if it marked any; equal ones go by
    sample id."""
    known = scores.read().filter((pl.col("scorer") == scorer) & pl.col("score").is_not_null())
    ranked = known.sort("score", "sample_id", descending=[True, False])
    return ranked.unique("prompt_id", keep="first", maintain_order=True).select("sample_id")


@contextmanager
def opened(
    scorers: Mapping[str, ScorerConfig], reward: Model | None, out: Path
) -> Iterator[dict[str, Scorer]]:
    knob = f"{knob_of(out, KNOB)}.scorers"
    with ExitStack() as open_scorers:
        found = {name: open_scorer(one, reward, f"{knob}.{name}") for name, one in scorers.items()}
        for scorer in found.values():
            open_scorers.callback(scorer.close)
        yield found


def begun(shards: list[str], told: Told, scorers: dict[str, Scorer]) -> Iterator[Begun]:
    """Each shard once the next one has begun: processes that mark need not wait until this one
    is written."""
    waiting: list[Begun] = []
    for shard in shards:
        answers = told.answers(shard)
        waiting.append(
            (shard, answers, {name: scorer.mark(answers) for name, scorer in scorers.items()})
        )
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


# ── models that run here ──────────────────────────────────────────────────────────────────────────


def mark_by_hands(
    cfg: ScoreConfig, out: Path, told: Told, reward: Model | None, shards: list[str]
) -> dict[str, float]:
    """Each hand opens every model once. What they cost beside time comes back."""
    missing = [shard for shard in shards if not (out / MARKS / shard).exists()]
    if not cfg.local or not missing:
        return {}
    say_phase(f"loading {', '.join(cfg.local)}")
    progress, bills = (
        Progress(f"score by {', '.join(cfg.local)}", len(missing), "shards"),
        list[dict[str, float]](),
    )

    def finish(_: str, bill: dict[str, float]) -> None:
        bills.append(bill)
        progress.advance()

    work = partial(mark, cfg.local, told, reward, out)
    hands = worker_environments(
        cfg.runtime.workers, f"{knob_of(out, KNOB)}.runtime.workers", cfg.gpus_each
    )
    run_shards(missing, work, hands, out / "scratch" / "workers", finish)
    return total(*bills)


def mark(
    scorers: dict[str, ScorerConfig], told: Told, reward: Model | None, out: Path, hand: Worker
) -> None:
    """One hand's part; with each shard it tells what that one cost."""
    with opened(scorers, reward, out) as here:
        spent: dict[str, float] = {}
        for shard in iter(hand.claim, None):
            answers = told.answers(shard)
            rows = [
                {"scorer": name, **asdict(one)}
                for name, scorer in here.items()
                for one in scorer.mark(answers)
            ]
            write_table(out / MARKS / shard, pl.DataFrame(rows, schema=MARK))
            before, spent = spent, paid(here)
            hand.finish(
                shard, {name: figure - before.get(name, 0) for name, figure in spent.items()}
            )


def read_marks(path: Path) -> Marked:
    marks: Marked = {}
    for row in read_table(path).iter_rows(named=True):
        marks.setdefault(row.pop("scorer"), []).append(Score(**row))
    return marks


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def table_of(
    single: Marked, ensembles: Mapping[str, EnsembleScorer], answers: list[Answer]
) -> pl.DataFrame:
    """A row for each mark, in the order of the answers; a criterion's scorer is
    `name/criterion`."""
    whole = {
        name: {m.sample_id: m for m in marks if not m.criterion} for name, marks in single.items()
    }
    joint = {name: [*combined(ensemble, answers, whole)] for name, ensemble in ensembles.items()}
    prompt_of = {answer.sample_id: answer.prompt_id for answer in answers}
    rows: dict[str, list[dict[str, Any]]] = {answer.sample_id: [] for answer in answers}
    for name, marks in (*sorted(single.items()), *joint.items()):
        for one in marks:
            rows[one.sample_id].append(
                {
                    "sample_id": one.sample_id,
                    "prompt_id": prompt_of[one.sample_id],
                    "scorer": f"{name}/{one.criterion}" if one.criterion else name,
                    "score": one.score,
                    "status": status_of(one),
                    "detail": one.detail,
                }
            )
    return pl.DataFrame(list(chain.from_iterable(rows.values())), schema=SCORE)


def _cut(table: pl.DataFrame) -> dict[str, int]:
    """Answers that a scorer saw without their beginning, as their details say."""
    cut = table.filter(pl.col("detail").str.contains('"cut": '))
    return {"cut": cut.height} if cut.height else {}


def paid(scorers: dict[str, Scorer]) -> dict[str, float]:
    """What the scorers have cost beside time, all together."""
    return total(*(scorer.cost() for scorer in scorers.values() if isinstance(scorer, Paid)))


def total(*bills: dict[str, float]) -> dict[str, float]:
    return {name: sum(bill.get(name, 0) for bill in bills) for name in dict.fromkeys(chain(*bills))}


def status_of(mark: Score) -> str:
    if mark.score is not None:
        return "ok"
    return "abstained" if mark.abstained else "failed"


def check_failures(cfg: ScoreConfig, out: Path) -> None:
    table = Scores(out).read()
    failed = table.filter(pl.col("status") == "failed")
    note_cost(
        out,
        scores=table.height,
        answers=table["sample_id"].n_unique(),
        failed=failed.height,
        **_cut(table),
    )
    if failed.height <= cfg.max_failed * table.height:
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    for shard in sorted((out / "scores").glob("*.parquet")):  # the same command marks these again
        if (read_table(shard)["status"] == "failed").any():
            shard.unlink()
            (out / MARKS / shard.name).unlink(missing_ok=True)
    knob = f"{knob_of(out, KNOB)}.max_failed={cfg.max_failed}"
    scorer, reason = (
        failed.group_by("scorer", "detail").len().sort("len", "scorer", "detail").row(-1)[:2]
    )
    raise StageError(
        f"{failed.height} of {many(table.height, 'score')} failed (most often {scorer}: {reason})."
        f" The limit is {knob}.\n  They are listed in {out / 'failed.parquet'}."
        " Raise the limit, or mend the scorer and run the same command again."
    )


def check_opinions(out: Path) -> None:
    """A scorer without an opinion on a single answer was given the labels, or the answers, of
    something else."""
    silent = (
        Scores(out)
        .read()
        .group_by("scorer")
        .agg((pl.col("status") == "abstained").all())
        .filter("status")
    )
    for name in silent["scorer"].sort():
        raise UserError(
            f"{knob_of(out, KNOB)}.scorers.{name}: it has no opinion on any of these answers.\n"
            "  Labels hold for the very samples that people saw. Give labels of these, or take the scorer out."
        )
