"""Question sets: each turn's scores and their mean, differences to SFT, judges' contests.

A question's mean counts where all its turns have a score: half a conversation has no mean.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from pipeline.artifacts import KL, ChatSet, EvalArtifacts
from pipeline.config import ANSWER, list_retention_names
from pipeline.data.label_files import Label
from pipeline.report.analysis import aggregate
from pipeline.report.analysis.annotators import HumanResults, collect_human_results
from pipeline.report.analysis.eval_results import SFT, EvalResult, ModelScores, mean_by_prompt
from pipeline.report.analysis.judges import judge_duels
from pipeline.report.analysis.multiple_testing import correct_families
from pipeline.report.analysis.panels import Combine, combine_judges
from pipeline.report.analysis.statistics import BootstrapConfig, estimate_mean
from pipeline.report.analysis.text_metrics import add_text_metrics

TURN = " turn "  # `judge turn 2` is a turn's score, `judge` the mean over turns


@dataclass(frozen=True)
class QuestionSet:
    """One set as its models answered it; `turns` has each question's number of turns."""

    name: str
    chat: ChatSet
    turns: dict[str, int]
    results: list[EvalResult]

    def contains(self, vote: Label) -> bool:
        return not self.answers.isdisjoint(vote.ids)

    @cached_property
    def answers(self) -> frozenset[str]:
        return frozenset(sample for model in self.results for sample in model.answers["sample_id"])


def read_question_set(name: str, chat: ChatSet) -> QuestionSet:
    turns = count_turns(chat)
    results = [read_chat_eval(model, own, turns) for model, own in chat["evals"].items()]
    return QuestionSet(name, chat, turns, results)


def describe_chat(
    question_set: QuestionSet,
    votes: Mapping[str, Sequence[Label]],
    bootstrap: BootstrapConfig,
    panel: Combine | None = None,
) -> tuple[dict[str, Any], HumanResults]:
    """One set's part of report.json, and its human results with all that the set lacks."""
    turns, results = question_set.turns, question_set.results
    sft = aggregate.find_model(results, SFT)
    names = sorted({scorer for model in results for scorer in model.scores})
    over_turns = [name for name in names if TURN not in name]
    gaps = [
        aggregate.describe_difference(model, sft, scorer, bootstrap)
        for model in results
        for scorer in over_turns
        if sft and model is not sft
    ]
    judged = judge_duels(question_set.chat.get("duels") or {}, results, bootstrap)
    combined, panels = combine_judges(judged, panel, bootstrap)
    judged += combined
    human = collect_human_results(results, votes, judged, bootstrap, question_set.name)
    rows = [aggregate.describe_duel(duel) for duel in (*judged, *human.duels)]
    differences, duels = correct_families(gaps, rows)
    human.missing += [
        {"model": f"{row['model']} on {question_set.name}", "what": row["what"]}
        for row in aggregate.list_missing(results)
    ]
    report = {
        "prompts": len(turns),
        "turns": max(turns.values(), default=0),
        "scorers": over_turns,
        "models": [_describe_model(model, names, bootstrap) for model in results],
        "differences": differences,
        "duels": duels,
        "panels": panels,
    }
    return report, human


def count_turns(chat: ChatSet) -> dict[str, int]:
    """Each question's turns: as many as it has, at most as many as any model was asked."""
    answers = (read_turns(artifacts) for artifacts in chat["evals"].values())
    most = max((turn for own in answers for turn in own["turn"]), default=1)
    return {
        key: min(most, len(columns.get("turns") or [0]))
        for key, columns in chat["prompts"].read_columns().items()
    }


def read_chat_eval(name: str, artifacts: EvalArtifacts, turns: Mapping[str, int]) -> EvalResult:
    answers = add_text_metrics(read_turns(artifacts))
    missing: list[str] = []
    for turn in range(1, max(turns.values(), default=0) + 1):
        expected = sum(turn <= last for last in turns.values())
        answered = answers.filter(pl.col("turn") == turn)["prompt_id"].n_unique()
        if lost := expected - answered:
            missing.append(f"it has no answer in turn {turn} to {lost} of {expected} questions")
    scores = _read_scores(artifacts, answers, turns) if "scores" in artifacts else {}
    return EvalResult(name, artifacts["model"].path, [], answers, scores, {}, missing)


def read_turns(artifacts: EvalArtifacts) -> pl.DataFrame:
    """Every answer with its turn."""
    columns = [
        "prompt_id",
        "sample_id",
        "setting",
        "completion",
        "finish_reason",
        "reasoning_tokens",
    ]
    rows = artifacts["samples"].read().filter(pl.col("setting") != KL)
    turn = (
        pl.when(pl.col("setting") == ANSWER)
        .then(1)
        .otherwise(pl.col("setting").str.extract(r"(\d+)$").cast(pl.Int64))
    )
    tokens = pl.col("token_ids").list.len().cast(pl.Int64)
    return rows.select(*columns, tokens=tokens, turn=turn).sort("prompt_id", "turn", "sample_id")


def _read_scores(
    artifacts: EvalArtifacts, answers: pl.DataFrame, turns: Mapping[str, int]
) -> dict[str, ModelScores]:
    own = answers.select("sample_id", "turn")
    rows = artifacts["scores"].read().join(own, on="sample_id", how="inner")
    scores = {}
    for scorer in rows["scorer"].unique().sort():
        of_scorer = rows.filter(pl.col("scorer") == scorer)
        failed = of_scorer.filter(pl.col("status") == "failed").height
        scored = of_scorer.filter(pl.col("score").is_not_null())
        by_turn: dict[str, dict[int, float]] = defaultdict(dict)
        for turn in of_scorer["turn"].unique().sort():
            means = mean_by_prompt(scored.filter(pl.col("turn") == turn), "score")
            scores[f"{scorer}{TURN}{turn}"] = ModelScores(means, frozenset(means), 0)
            for prompt, mean in means.items():
                by_turn[prompt][turn] = mean
        over_turns = {
            key: sum(means.values()) / len(means)
            for key, means in sorted(by_turn.items())
            if len(means) == turns[key]
        }
        scores[scorer] = ModelScores(over_turns, frozenset(turns), failed)
    return scores


def _describe_model(
    model: EvalResult, names: list[str], bootstrap: BootstrapConfig
) -> dict[str, Any]:
    def describe_scorer(scorer: str) -> dict[str, Any]:
        scores = model.scores[scorer]
        mean = estimate_mean([*scores.means.values()], bootstrap)
        return {**aggregate.describe_estimate(mean), "failed": scores.failed}

    tokens = estimate_mean([*mean_by_prompt(model.answers, "tokens").values()], bootstrap)
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "answers": model.answers.height,
        "tokens": aggregate.describe_bounds(tokens),
        "metrics": {name: describe_scorer(name) for name in names if name in model.scores},
    }


def list_watched_differences(chats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every difference to SFT, by each name that evaluate.retention may give its scorer."""
    return [
        {**row, "scorer": name}
        for chat, report in chats.items()
        for row in report["differences"]
        for name in _list_names(chat, row["scorer"], report["scorers"])
    ]


def list_watched_figures(chats: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every model's figures, by each name that evaluate.retention and expect may give them."""
    return [
        {"name": model["name"], "metrics": _rename_metrics(chat, model["metrics"], report)}
        for chat, report in chats.items()
        for model in report["models"]
    ]


def _rename_metrics(
    chat: str, metrics: Mapping[str, Any], report: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        name: figure
        for scorer, figure in metrics.items()
        for name in _list_names(chat, scorer, report["scorers"])
    }


def _list_names(chat: str, scorer: str, over_turns: Sequence[str]) -> list[str]:
    single = {name.partition("/")[0] for name in over_turns}
    return list_retention_names(chat, scorer, single)
