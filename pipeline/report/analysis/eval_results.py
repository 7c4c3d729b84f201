"""One examined model as numbers by prompt: its marks by scorer, its answers, its drift from SFT; and what it lacks."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, EvalArtifacts, Logps, Model, Samples, Scores
from pipeline.config import ANSWER, BEST_OF, CONTROL, PROMPTED
from pipeline.errors import StageError, pluralize
from pipeline.report.analysis.text_metrics import with_habits

SFT = "sft"


@dataclass(frozen=True)
class ModelScores:
    """One scorer's means by prompt; `asked` are the prompts it was to mark, `failed` the answers that it could not.

    An answer on which it abstained is neither: people were not asked about it.
    """

    means: dict[str, float]
    asked: frozenset[str]
    failed: int


@dataclass(frozen=True)
class EvalResult:
    name: str
    path: Path
    training: list[dict[str, Any]]
    answers: pl.DataFrame  # with the primary score
    marks: dict[str, ModelScores]
    drift: dict[str, float]
    missing: list[str] = field(default_factory=list)
    no_drift: str | None = None  # why there is none
    unchanged: bool = False  # its training left its weights as they were

    @property
    def fingerprint(self) -> str:
        return self.path.name


def read_exam(
    name: str, exam: EvalArtifacts, prompt_ids: frozenset[str], primary: str
) -> EvalResult:
    model, samples = exam["model"], exam.get("samples")
    scores, logps = exam.get("scores"), exam.get("logps")
    drawn = _drawn(samples)
    if name.startswith(BEST_OF):
        drawn = _marked(drawn, scores)
    answers = _answers(drawn)
    if strangers := set(drawn["prompt_id"]) - prompt_ids:
        raise StageError(
            f"the exam of {name} answers {pluralize(len(strangers), 'prompt')} outside the {len(prompt_ids)} examined "
            f"({min(strangers)} for one).\n  Its samples belong to another part of the prompts; build the exam again."
        )
    missing: list[str] = []
    rows = _scores(name, scores, answers, prompt_ids, missing)
    marks = _marks(rows, len(answers), prompt_ids)
    answers = _with_score(answers, rows, primary)
    drift = _drift(drawn, logps, missing)
    reason = None if drift else _no_drift(name, drawn)
    if reason and not (name == SFT or is_again(name) or is_other(name)):
        missing.append(f"KL to sft is not known: {reason}")
    unchanged = bool(account_of(model).get("unchanged"))
    if unchanged:
        missing.append(
            "its weights are those that its training started from, byte for byte: no step changed them"
        )
    return EvalResult(
        name, model.path, model.read_metrics(), answers, marks, drift, missing, reason, unchanged
    )


def account_of(model: Model) -> dict[str, Any]:
    """What its training says about itself; nothing where it was not trained here."""
    file = model.path / "training.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _drawn(samples: Samples | None) -> pl.DataFrame:
    columns = [
        "prompt_id",
        "sample_id",
        "setting",
        "completion",
        "finish_reason",
        "logprob",
        "reasoning_tokens",
    ]
    shards = [
        shard.select(*columns, tokens=pl.col("token_ids").list.len().cast(pl.Int64))
        for shard in (samples.read_shards() if samples else [])
    ]
    if not shards:
        text = dict.fromkeys(columns, pl.String)
        return pl.DataFrame(
            schema={**text, "logprob": pl.Float64, "reasoning_tokens": pl.Int64, "tokens": pl.Int64}
        )
    return pl.concat(shards)


def _answers(drawn: pl.DataFrame) -> pl.DataFrame:
    return with_habits(drawn.filter(pl.col("setting") == ANSWER))


def _marked(drawn: pl.DataFrame, scores: Scores | None) -> pl.DataFrame:
    """The best of n are those answers that the exam's scorers were shown; the others are none."""
    shown = (
        scores.read().select("sample_id").unique() if scores else drawn.select("sample_id").clear()
    )
    return drawn.join(shown, on="sample_id", how="semi", maintain_order="left")


def is_again(name: str) -> bool:
    """Whether a row is SFT itself, drawn once more."""
    return name in (CONTROL, PROMPTED) or name.startswith(BEST_OF)


def is_other(name: str) -> bool:
    """Whether a row is a model that this run neither started from nor trained."""
    return name not in ("base", SFT) and not name.startswith("round-") and not is_again(name)


def _scores(
    name: str,
    scores: Scores | None,
    answers: pl.DataFrame,
    prompt_ids: frozenset[str],
    missing: list[str],
) -> pl.DataFrame:
    """The scores of these answers, each once."""
    columns = dict.fromkeys(("sample_id", "prompt_id", "scorer", "status"), pl.String) | {
        "score": pl.Float64
    }
    if answers.is_empty():
        missing.append("it gave no answers, so it has no scores, lengths or examples")
        return pl.DataFrame(schema=columns)
    if silent := len(prompt_ids) - answers["prompt_id"].n_unique():
        missing.append(f"it has no answer to {silent} of {len(prompt_ids)} prompts")
    if empty := answers.filter(pl.col("completion").str.strip_chars() == "").height:
        missing.append(
            f"empty: {empty} of its {pluralize(len(answers), 'answer')}, marked as they stand"
        )
    if scores is None:
        missing.append("its answers were not scored")
        return pl.DataFrame(schema=columns)
    rows = (
        scores.read().select(*columns).join(answers.select("sample_id"), on="sample_id", how="semi")
    )
    if rows.is_empty():
        missing.append("no score belongs to one of its answers")
    if not rows["score"].drop_nulls().is_finite().all():
        raise StageError(
            f"the exam of {name} has a score that is not a finite number; a failed score must be null."
        )
    if rows.select("sample_id", "scorer").is_duplicated().any():
        raise StageError(
            f"the exam of {name} has two scores of one scorer for one answer; build its scores again."
        )
    return rows.sort("sample_id", "scorer")


def _marks(rows: pl.DataFrame, answers: int, prompt_ids: frozenset[str]) -> dict[str, ModelScores]:
    scorers = rows["scorer"].unique().sort().to_list()
    return {
        name: _of_scorer(name, rows.filter(pl.col("scorer") == name), answers, prompt_ids)
        for name in scorers
    }


def _with_score(answers: pl.DataFrame, rows: pl.DataFrame, primary: str) -> pl.DataFrame:
    scored = rows.filter(pl.col("scorer") == primary).select("sample_id", "score")
    return answers.join(scored, on="sample_id", how="left", maintain_order="left", validate="1:1")


def _of_scorer(
    scorer: str, rows: pl.DataFrame, answers: int, prompt_ids: frozenset[str]
) -> ModelScores:
    """A scorer marks every answer; its kinds (`scorer/kind`) mark those they apply to, which are those with a row."""
    given, silent = rows.filter(pl.col("score").is_not_null()), rows.filter(status="abstained")
    told = rows.filter(pl.col("status") != "abstained")
    if is_kind(scorer):
        return ModelScores(
            by_prompt(given, "score"), frozenset(told["prompt_id"]), len(told) - len(given)
        )
    asked = prompt_ids - (frozenset(silent["prompt_id"]) - frozenset(told["prompt_id"]))
    return ModelScores(by_prompt(given, "score"), asked, answers - len(silent) - len(given))


def is_kind(scorer: str) -> bool:
    return "/" in scorer


def by_prompt(table: pl.DataFrame, column: str) -> dict[str, float]:
    """A prompt's answers are averaged first."""
    means = table.group_by("prompt_id", maintain_order=True).agg(pl.col(column).mean())
    return dict(means.sort("prompt_id").iter_rows())


def _no_drift(name: str, drawn: pl.DataFrame) -> str:
    if is_again(name):
        return "sft's own answers"
    if is_other(name):
        return "it is a model of its own, whose tokens need not be sft's"
    if KL not in drawn["setting"]:
        return f"the exam has no samples of the setting {KL}"
    return "its samples have no log-probability under sft"


def _drift(drawn: pl.DataFrame, logps: Logps | None, missing: list[str]) -> dict[str, float]:
    """log π(y) − log SFT(y) on own samples drawn at temperature 1 without truncation: its mean is KL(π‖SFT) in nats."""
    rows = drawn.filter(pl.col("setting") == KL)
    if logps is None or rows.is_empty():
        return {}
    joined = rows.join(
        logps.read().select("sample_id", "logp"), on="sample_id", how="inner", validate="1:1"
    )
    joined = joined.sort("sample_id")
    known = joined.with_columns(gap=pl.col("logprob") - pl.col("logp")).filter(
        pl.col("gap").is_not_null()
    )
    if lost := len(rows) - len(known):
        missing.append(
            f"left out {lost} of {len(rows)} samples for KL without a log-probability under sft"
        )
    return by_prompt(known, "gap")
