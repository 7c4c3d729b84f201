"""Scores every completion with every scorer. A failed score is null and counted, never 0.

Works by the shards of the samples: a killed run scores again only the shards that it was in. Models
that run here score first, in all workers; every other scorer runs in this process, since it keeps
its own requests or processes.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
    note_cost,
    read_table,
    write_atomically,
    write_table,
)
from pipeline.config import (
    BestAnswersConfig,
    EnsembleScorer,
    RefusalScorer,
    ScoreConfig,
    ScorerConfig,
)
from pipeline.data.columns import SCORES
from pipeline.errors import StageError, UserError, WorkPending, pluralize
from pipeline.progress import Progress, print_phase, print_progress
from pipeline.resources.gpu_sets import worker_environments
from pipeline.resources.worker_pool import Worker, run_shards
from pipeline.scorers import Answer, PaidScorer, Score, Scorer, open_scorer
from pipeline.scorers.joint import score_jointly

LOCAL_SCORE = {
    "scorer": pl.String,
    "sample_id": pl.String,
    "score": pl.Float64,
    "criterion": pl.String,
    "detail": pl.String,
    "abstained": pl.Boolean,
}
EARLY_PAUSE = 0.5  # seconds between two looks at the finished shards
LOCAL_SCORES = "scratch/scores"  # of the models that run here, until the other scores are there
ScoresByScorer = dict[str, list[Score]]
# A shard, its answers, and their scores as they arrive.
OpenScorers = Callable[[Mapping[str, ScorerConfig]], AbstractContextManager[dict[str, Scorer]]]
StartedShard = tuple[str, list[Answer], dict[str, Iterator[Score]]]


def run(
    cfg: ScoreConfig | BestAnswersConfig,
    out: Path,
    *,
    samples: Samples,
    prompts: Prompts,
    reward: Model | None = None,
    best: Scores | None = None,
    early: Path | None = None,
    knob: str = "score",
) -> Scores:
    if early:
        take_early_scores(early, samples, out)
    answers_of = ShardAnswers(samples, prompts, select_answers(cfg, best))
    shards = sorted(path.name for path in (samples.path / "samples").glob("*.parquet"))
    missing = [shard for shard in shards if not (out / "scores" / shard).exists()]
    open_named = partial(open_scorers, reward=reward, knob=f"{knob}.scorers")
    bill = score_locally(cfg, out, answers_of, open_named, missing, knob)
    progress = Progress("score", len(shards), "shards")
    progress.resume_at(len(shards) - len(missing))
    pending: dict[str, WorkPending] = {}
    with open_named(cfg.other_scorers) as scorers:
        for shard, answers, arriving in start_shards(missing, answers_of, scorers):
            scores = (
                read_local_scores(out / LOCAL_SCORES / shard) if cfg.local_model_scorers else {}
            )
            if (arrived := collect_scores(arriving, pending)) is None:
                continue
            scores |= arrived
            write_table(out / "scores" / shard, build_table(scores, cfg.joint_scorers, answers))
            note_cost(out, **add_bills(bill, sum_costs(scorers)))
            progress.advance()
    if pending:
        raise WorkPending(*pending.values())
    check_opinions(out, knob)
    check_failures(cfg, out, knob)
    return Scores(out)


def join(
    cfg: ScoreConfig | BestAnswersConfig,
    out: Path,
    worker: Worker,
    *,
    samples: Samples,
    prompts: Prompts,
    reward: Model | None = None,
    best: Scores | None = None,
    knob: str = "score",
) -> None:
    """Score shards of a step that another process builds, by the models that run here."""
    answers_of = ShardAnswers(samples, prompts, select_answers(cfg, best))
    open_local = partial(open_scorers, cfg.local_model_scorers, reward, f"{knob}.scorers")
    score_shards(open_local, answers_of, out, worker)


def select_answers(
    cfg: ScoreConfig | BestAnswersConfig, best: Scores | None
) -> pl.DataFrame | None:
    """The sample ids to score; None: all."""
    if best and isinstance(cfg, BestAnswersConfig):
        return select_best_answers(cfg.best_by, best)
    return None


def collect_scores(
    arriving: Mapping[str, Iterator[Score]], pending: dict[str, WorkPending]
) -> ScoresByScorer | None:
    """A shard's scores; None where one waits for a batch. The other shards are submitted too.

    `pending` keeps what each scorer waits for, by name; the last text of a scorer counts all.
    """
    scores: ScoresByScorer = {}
    for name, each in arriving.items():
        try:
            scores[name] = [*each]
        except WorkPending as error:
            pending[name] = error
    return scores if len(scores) == len(arriving) else None


# ── while the answers are sampled ─────────────────────────────────────────────────────────────────


def score_early(
    cfg: ScoreConfig, early: Path, *, samples: Samples, prompts: Prompts, knob: str
) -> None:
    """Score each finished shard of samples that are not published, until they are."""
    answers_of = ShardAnswers(samples, prompts, None)
    with open_scorers(cfg.other_scorers, None, f"{knob}.scorers") as scorers:
        while samples.path.exists():
            for shard, digest in list_finished_shards(samples).items():
                file = early / f"{digest}.parquet"
                if file.exists():
                    continue
                answers = answers_of.read(shard)
                scores = {name: [*scorer.score(answers)] for name, scorer in scorers.items()}
                write_table(file, build_table(scores, cfg.joint_scorers, answers))
                print_progress(f"scored {shard} while others are sampled")
            time.sleep(EARLY_PAUSE)


def list_finished_shards(samples: Samples) -> dict[str, str]:
    """The hash of each finished shard's answers."""
    try:
        entries = json.loads((samples.path / "shards.json").read_text())
    except FileNotFoundError:  # none yet; or the samples are published, in another folder
        return {}
    return {shard: entry["sha256"] for shard, entry in entries.items()}


def take_early_scores(early: Path, samples: Samples, out: Path) -> None:
    for shard, digest in list_finished_shards(samples).items():
        scored = early / f"{digest}.parquet"
        if scored.exists() and not (out / "scores" / shard).exists():
            write_atomically(out / "scores" / shard, scored.read_bytes())


@dataclass(frozen=True)
class ShardAnswers:
    """The answers of each shard, with the columns of their prompts."""

    samples: Samples
    prompts: Prompts
    wanted: pl.DataFrame | None  # the sample ids to score; None: all

    @cached_property
    def _columns(self) -> dict[str, dict[str, Any]]:
        return self.prompts.read_columns()

    def read(self, shard: str) -> list[Answer]:
        rows = read_table(self.samples.path / "samples" / shard)
        rows = rows if self.wanted is None else rows.join(self.wanted, on="sample_id", how="semi")
        rows = rows.filter(pl.col("setting") != KL)
        columns = "sample_id", "prompt_id", "prompt", "completion"
        table = rows.select(*columns, tokens=pl.col("token_ids").list.len())
        return [
            Answer(**row, columns=self._columns[row["prompt_id"]])
            for row in table.iter_rows(named=True)
        ]


def select_best_answers(scorer: str, scores: Scores) -> pl.DataFrame:
    """The answer of each prompt with a scorer's highest score. Equal ones go by sample id."""
    known = scores.read().filter((pl.col("scorer") == scorer) & pl.col("score").is_not_null())
    ranked = known.sort("score", "sample_id", descending=[True, False])
    return ranked.unique("prompt_id", keep="first", maintain_order=True).select("sample_id")


@contextmanager
def open_scorers(
    scorers: Mapping[str, ScorerConfig], reward: Model | None, knob: str
) -> Iterator[dict[str, Scorer]]:
    with ExitStack() as stack:
        found = {name: open_scorer(one, reward, f"{knob}.{name}") for name, one in scorers.items()}
        for scorer in found.values():
            stack.callback(scorer.close)
        yield found


def start_shards(
    shards: list[str], answers_of: ShardAnswers, scorers: dict[str, Scorer]
) -> Iterator[StartedShard]:
    """Yields each shard once the next one has started.

    Scorers need not wait while a shard is written.
    """
    waiting: list[StartedShard] = []
    for shard in shards:
        answers = answers_of.read(shard)
        scores = {name: scorer.score(answers) for name, scorer in scorers.items()}
        waiting.append((shard, answers, scores))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


# ── models that run here ──────────────────────────────────────────────────────────────────────────


def score_locally(
    cfg: ScoreConfig,
    out: Path,
    answers_of: ShardAnswers,
    open_named: OpenScorers,
    shards: list[str],
    knob: str,
) -> dict[str, float]:
    """Each worker opens every model once. Returns what they cost other than time."""
    missing = [shard for shard in shards if not (out / LOCAL_SCORES / shard).exists()]
    if not cfg.local_model_scorers or not missing:
        return {}
    print_phase(f"loading {', '.join(cfg.local_model_scorers)}")
    progress = Progress(f"score by {', '.join(cfg.local_model_scorers)}", len(missing), "shards")
    bills: list[dict[str, float]] = []

    def on_finish(_: str, bill: dict[str, float]) -> None:
        bills.append(bill)
        progress.advance()

    open_local = partial(open_named, cfg.local_model_scorers)
    work = partial(score_shards, open_local, answers_of, out)
    workers = f"{knob}.runtime.workers"
    environments = worker_environments(cfg.runtime.workers, workers, cfg.gpus_each)
    run_shards(missing, work, environments, out, on_finish)
    return add_bills(*bills)


def score_shards(
    open_local: Callable[[], AbstractContextManager[dict[str, Scorer]]],
    answers_of: ShardAnswers,
    out: Path,
    worker: Worker,
) -> None:
    """One worker's part. It finishes each shard with the cost of that shard."""
    with open_local() as local:
        spent: dict[str, float] = {}
        for shard in iter(worker.claim, None):
            answers = answers_of.read(shard)
            rows = [
                {"scorer": name, **asdict(one)}
                for name, scorer in local.items()
                for one in scorer.score(answers)
            ]
            file = worker.output(shard, out / LOCAL_SCORES / shard)
            write_table(file, pl.DataFrame(rows, schema=LOCAL_SCORE))
            before, spent = spent, sum_costs(local)
            bill = {name: figure - before.get(name, 0) for name, figure in spent.items()}
            worker.finish(shard, bill)


def read_local_scores(path: Path) -> ScoresByScorer:
    scores: ScoresByScorer = {}
    for row in read_table(path).iter_rows(named=True):
        scores.setdefault(row.pop("scorer"), []).append(Score(**row))
    return scores


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def build_table(
    single: ScoresByScorer,
    joint_scorers: Mapping[str, EnsembleScorer | RefusalScorer],
    answers: list[Answer],
) -> pl.DataFrame:
    """A row for each score, in the order of the answers.

    A criterion's scorer is named `name/criterion`.
    """
    whole = {}
    for name, scores in single.items():
        whole[name] = {score.sample_id: score for score in scores if not score.criterion}
    joint = {name: [*score_jointly(one, answers, whole)] for name, one in joint_scorers.items()}
    prompt_of = {answer.sample_id: answer.prompt_id for answer in answers}
    rows: dict[str, list[dict[str, Any]]] = {answer.sample_id: [] for answer in answers}
    for name, scores in (*sorted(single.items()), *joint.items()):
        for one in scores:
            rows[one.sample_id].append(
                {
                    "sample_id": one.sample_id,
                    "prompt_id": prompt_of[one.sample_id],
                    "scorer": f"{name}/{one.criterion}" if one.criterion else name,
                    "score": one.score,
                    "status": score_status(one),
                    "detail": one.detail,
                }
            )
    return pl.DataFrame(list(chain.from_iterable(rows.values())), schema=SCORES)


def _count_cut(table: pl.DataFrame) -> dict[str, int]:
    """Answers that a scorer saw without their beginning, by their details."""
    cut = table.filter(pl.col("detail").str.contains('"cut": '))
    return {"cut": cut.height} if cut.height else {}


def sum_costs(scorers: dict[str, Scorer]) -> dict[str, float]:
    """What all scorers have cost other than time."""
    return add_bills(
        *(scorer.get_cost() for scorer in scorers.values() if isinstance(scorer, PaidScorer))
    )


def add_bills(*bills: dict[str, float]) -> dict[str, float]:
    names = dict.fromkeys(chain(*bills))
    return {name: sum(bill.get(name, 0) for bill in bills) for name in names}


def score_status(score: Score) -> str:
    if score.score is not None:
        return "ok"
    return "abstained" if score.abstained else "failed"


def check_failures(cfg: ScoreConfig, out: Path, knob: str) -> None:
    table = Scores(out).read()
    failed = table.filter(pl.col("status") == "failed")
    abstained = table.filter(pl.col("status") == "abstained").height
    note_cost(
        out,
        scores=table.height,
        answers=table["sample_id"].n_unique(),
        failed=failed.height,
        **({"abstained": abstained} if abstained else {}),
        **_count_cut(table),
    )
    by_scorer = table.group_by("scorer").agg(pl.len(), failed=(pl.col("status") == "failed").sum())
    share = pl.col("failed") / pl.col("len")
    over = by_scorer.filter(share > cfg.max_failed).sort(share, "scorer", descending=[True, False])
    if over.is_empty():
        (out / "failed.parquet").unlink(missing_ok=True)  # of an earlier attempt
        return
    write_table(out / "failed.parquet", failed)
    for shard in sorted((out / "scores").glob("*.parquet")):  # the same command scores these again
        if (read_table(shard)["status"] == "failed").any():
            shard.unlink()
            (out / LOCAL_SCORES / shard.name).unlink(missing_ok=True)
    scorer, rows, count = over.row(0)
    reasons = failed.filter(scorer=scorer).group_by("detail").len().sort("len", "detail")
    raise StageError(
        f"{count} of {pluralize(rows, 'score')} by {scorer} failed (most often:"
        f" {reasons['detail'][-1]})."
        f" The limit is {knob}.max_failed={cfg.max_failed}.\n"
        f"  They are listed in {out / 'failed.parquet'}."
        " Fix the scorer, or raise the limit, and run the same command again."
    )


def check_opinions(out: Path, knob: str) -> None:
    """A scorer that abstains on every answer has labels, or answers, of something else."""
    by_scorer = Scores(out).read().group_by("scorer")
    silent = by_scorer.agg((pl.col("status") == "abstained").all()).filter("status")
    for name in silent["scorer"].sort():
        raise UserError(
            f"{knob}.scorers.{name}: it has no opinion on any of these answers.\n"
            "  Labels hold for exactly the samples that the annotators saw, and a judge with a"
            " reference or a rubric for the prompts that have one."
            " Give labels of these, or prompts with that column, or take the scorer out."
        )
