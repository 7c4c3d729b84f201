"""One evaluated model as numbers by prompt: scores, answers, KL from SFT; and what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import KL, EvalArtifacts, Logps, Model, Samples, Scores, read_object
from pipeline.config import ANSWER, BEST_OF_PREFIX, CONTROL, PROMPTED, is_merged
from pipeline.errors import StageError, pluralize
from pipeline.report.analysis.text_metrics import add_text_metrics

SFT = "sft"


@dataclass(frozen=True)
class ModelScores:
    """One scorer's means by prompt.

    `expected` are the prompts that it was to score, `failed` the answers that it could not score.
    An answer on which it abstained is neither: the scorer has no opinion on it.
    """

    means: dict[str, float]
    expected: frozenset[str]
    failed: int


@dataclass(frozen=True)
class EvalResult:
    name: str
    path: Path
    training: list[dict[str, Any]]
    answers: pl.DataFrame  # with the primary score
    scores: dict[str, ModelScores]  # by scorer
    kl: dict[str, float]  # by prompt
    missing: list[str] = field(default_factory=list)
    no_kl_reason: str | None = None  # why `kl` is empty
    # What its training recorded about itself: whether it changed a weight, where it ended.
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_unchanged(self) -> bool:
        """Whether its training left its weights as they were."""
        return bool(self.summary.get("unchanged"))

    @property
    def fingerprint(self) -> str:
        return self.path.name


def read_eval(
    name: str, artifacts: EvalArtifacts, prompt_ids: frozenset[str], primary: str
) -> EvalResult:
    model, score_artifact = artifacts["model"], artifacts.get("scores")
    samples = _read_samples(artifacts.get("samples"))
    if name.startswith(BEST_OF_PREFIX):
        samples = _keep_scored(samples, score_artifact)
    answers = _select_answers(samples)
    if strangers := set(samples["prompt_id"]) - prompt_ids:
        raise StageError(
            f"the evaluation of {name} answers {pluralize(len(strangers), 'prompt')}"
            f" outside the {len(prompt_ids)} evaluated ({min(strangers)} for one).\n"
            "  Its samples belong to another split of the prompts; build the evaluation again."
        )
    missing: list[str] = []
    rows = _read_scores(name, score_artifact, answers, prompt_ids, missing)
    scores = _group_by_scorer(rows, len(answers), prompt_ids)
    answers = _join_score(answers, rows, primary)
    kl = _estimate_kl(samples, artifacts.get("logps"), missing)
    reason = None if kl else _explain_missing_kl(name, samples)
    if reason and not (name == SFT or is_sft_variant(name) or is_baseline(name)):
        missing.append(f"KL to sft is not known: {reason}")
    summary = read_training_summary(model)
    if summary.get("unchanged"):
        missing.append(
            "its weights are byte for byte those that its training started from: "
            "no step changed them"
        )
    metrics = model.read_metrics()
    return EvalResult(name, model.path, metrics, answers, scores, kl, missing, reason, summary)


def read_training_summary(model: Model) -> dict[str, Any]:
    """What its training recorded about itself; nothing for a model that was not trained here."""
    file = model.path / "training.json"
    return read_object(file) if file.exists() else {}


def _read_samples(samples: Samples | None) -> pl.DataFrame:
    columns = [
        "prompt_id",
        "sample_id",
        "setting",
        "completion",
        "finish_reason",
        "logprob",
        "reasoning_tokens",
    ]
    tokens = pl.col("token_ids").list.len().cast(pl.Int64)
    shards = [
        shard.select(*columns, tokens=tokens)
        for shard in (samples.read_shards() if samples else [])
    ]
    if not shards:
        text = dict.fromkeys(columns, pl.String)
        return pl.DataFrame(
            schema={**text, "logprob": pl.Float64, "reasoning_tokens": pl.Int64, "tokens": pl.Int64}
        )
    return pl.concat(shards)


def _select_answers(samples: pl.DataFrame) -> pl.DataFrame:
    return add_text_metrics(samples.filter(pl.col("setting") == ANSWER))


def _keep_scored(samples: pl.DataFrame, scores: Scores | None) -> pl.DataFrame:
    """Of the best-of-n samples, only those that went to the evaluation's scorers."""
    scored = (
        scores.read().select("sample_id").unique()
        if scores
        else samples.select("sample_id").clear()
    )
    return samples.join(scored, on="sample_id", how="semi", maintain_order="left")


def is_sft_variant(name: str) -> bool:
    """Whether a row is SFT itself, sampled in another way."""
    return name in (CONTROL, PROMPTED) or name.startswith(BEST_OF_PREFIX)


def is_baseline(name: str) -> bool:
    """Whether a row is a model that this run neither started from nor trained."""
    is_ours = name in ("base", SFT) or name.startswith("round-") or is_merged(name)
    return not is_ours and not is_sft_variant(name)


def _read_scores(
    name: str,
    scores: Scores | None,
    answers: pl.DataFrame,
    prompt_ids: frozenset[str],
    missing: list[str],
) -> pl.DataFrame:
    """The scores of these answers, each once."""
    text = dict.fromkeys(("sample_id", "prompt_id", "scorer", "status"), pl.String)
    columns = text | {"score": pl.Float64}
    if answers.is_empty():
        missing.append("it gave no answers, so it has no scores, lengths or examples")
        return pl.DataFrame(schema=columns)
    if unanswered := len(prompt_ids) - answers["prompt_id"].n_unique():
        missing.append(f"it has no answer to {unanswered} of {len(prompt_ids)} prompts")
    if empty := answers.filter(pl.col("completion").str.strip_chars() == "").height:
        missing.append(
            f"empty: {empty} of its {pluralize(len(answers), 'answer')}, scored like any other"
        )
    if scores is None:
        missing.append("its answers were not scored")
        return pl.DataFrame(schema=columns)
    own = answers.select("sample_id")
    rows = scores.read().select(*columns).join(own, on="sample_id", how="semi")
    if rows.is_empty():
        missing.append("no score belongs to one of its answers")
    if not rows["score"].drop_nulls().is_finite().all():
        raise StageError(
            f"the evaluation of {name} has a score that is not a finite number;"
            " a failed score must be null."
        )
    if rows.select("sample_id", "scorer").is_duplicated().any():
        raise StageError(
            f"the evaluation of {name} has two scores of one scorer for one answer;"
            " build its scores again."
        )
    return rows.sort("sample_id", "scorer")


def _group_by_scorer(
    rows: pl.DataFrame, answers: int, prompt_ids: frozenset[str]
) -> dict[str, ModelScores]:
    scorers = rows["scorer"].unique().sort().to_list()
    return {
        name: _summarize_scorer(name, rows.filter(pl.col("scorer") == name), answers, prompt_ids)
        for name in scorers
    }


def _join_score(answers: pl.DataFrame, rows: pl.DataFrame, primary: str) -> pl.DataFrame:
    scored = rows.filter(pl.col("scorer") == primary).select("sample_id", "score")
    return answers.join(scored, on="sample_id", how="left", maintain_order="left", validate="1:1")


def _summarize_scorer(
    scorer: str, rows: pl.DataFrame, answers: int, prompt_ids: frozenset[str]
) -> ModelScores:
    """A scorer scores every answer, a criterion (`scorer/criterion`) only those with a row."""
    scored, abstained = (
        rows.filter(pl.col("score").is_not_null()),
        rows.filter(status="abstained"),
    )
    not_abstained = rows.filter(pl.col("status") != "abstained")
    means, answered = mean_by_prompt(scored, "score"), frozenset(not_abstained["prompt_id"])
    if is_criterion(scorer):
        return ModelScores(means, answered, len(not_abstained) - len(scored))
    expected = prompt_ids - (frozenset(abstained["prompt_id"]) - answered)
    return ModelScores(means, expected, answers - len(abstained) - len(scored))


def is_criterion(scorer: str) -> bool:
    return "/" in scorer


def mean_by_prompt(table: pl.DataFrame, column: str) -> dict[str, float]:
    """The mean over each prompt's answers."""
    means = table.group_by("prompt_id", maintain_order=True).agg(pl.col(column).mean())
    return dict(means.sort("prompt_id").iter_rows())


def _explain_missing_kl(name: str, samples: pl.DataFrame) -> str:
    if is_sft_variant(name):
        return "sft's own answers"
    if is_baseline(name):
        return "it is another model, whose tokens may differ from sft's"
    if KL not in samples["setting"]:
        return f"the evaluation has no samples of the setting {KL}"
    return "its samples have no log-probability under sft"


def _estimate_kl(
    samples: pl.DataFrame, logps: Logps | None, missing: list[str]
) -> dict[str, float]:
    """log π(y) − log SFT(y) on own samples at temperature 1 without truncation.

    Its mean is KL(π‖SFT) in nats.
    """
    rows = samples.filter(pl.col("setting") == KL)
    if logps is None or rows.is_empty():
        return {}
    under_sft = logps.read().select("sample_id", "logp")
    joined = rows.join(under_sft, on="sample_id", how="inner", validate="1:1").sort("sample_id")
    with_gap = joined.with_columns(gap=pl.col("logprob") - pl.col("logp"))
    known = with_gap.filter(pl.col("gap").is_not_null())
    if lost := len(rows) - len(known):
        missing.append(
            f"left out {lost} of {len(rows)} samples for KL without a log-probability under sft"
        )
    return mean_by_prompt(known, "gap")
