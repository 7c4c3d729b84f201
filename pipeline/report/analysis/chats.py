"""Sets of questions beside the test prompts: each turn's scores and their mean, differences to SFT, judges' contests.

A question's mean counts where all its turns have a score: half a conversation is no mean of it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from pipeline.artifacts import KL, ChatSet, EvalArtifacts
from pipeline.config import ANSWER
from pipeline.report.analysis import aggregate
from pipeline.report.analysis.eval_results import SFT, EvalResult, ModelScores, by_prompt
from pipeline.report.analysis.judges import judged
from pipeline.report.analysis.multiple_testing import corrected
from pipeline.report.analysis.people import Said, Vote, said_of
from pipeline.report.analysis.statistics import BootstrapConfig, estimate
from pipeline.report.analysis.text_metrics import with_habits

TURN = " turn "  # `judge turn 2` beside `judge`, the mean


@dataclass(frozen=True)
class QuestionSet:
    """One set as its models answered it; `asked` says in how many turns each question was."""

    name: str
    chat: ChatSet
    asked: dict[str, int]
    examined: list[EvalResult]

    def has(self, vote: Vote) -> bool:
        return vote.a_id in self.answers or vote.b_id in self.answers

    @cached_property
    def answers(self) -> frozenset[str]:
        return frozenset(sample for model in self.examined for sample in model.answers["sample_id"])


def read_set(name: str, chat: ChatSet) -> QuestionSet:
    asked = turns_asked(chat)
    return QuestionSet(
        name, chat, asked, [read_chat(model, exam, asked) for model, exam in chat["exams"].items()]
    )


def chat_report(
    of: QuestionSet, votes: Mapping[str, Sequence[Vote]], draw: BootstrapConfig
) -> tuple[dict[str, Any], Said]:
    """What stands in the report of one set; what people said of it, with all that is missing of it."""
    asked, examined = of.asked, of.examined
    sft = aggregate.named(examined, SFT)
    names = sorted({scorer for model in examined for scorer in model.marks})
    whole = [name for name in names if TURN not in name]
    gaps = [
        aggregate.difference_of(model, sft, scorer, draw)
        for model in examined
        for scorer in whole
        if sft and model is not sft
    ]
    fought = judged(of.chat.get("duels") or {}, examined, draw)
    people = said_of(examined, votes, fought, draw, of.name)
    differences, duels = corrected(
        gaps, [aggregate.duel_row(duel) for duel in (*fought, *people.duels)]
    )
    lacking = aggregate.missing(examined)
    people.missing += [
        {"model": f"{row['model']} on {of.name}", "what": row["what"]} for row in lacking
    ]
    models = [_model(model, names, draw) for model in examined]
    told = {"prompts": len(asked), "turns": max(asked.values(), default=0)}
    return {
        **told,
        "scorers": whole,
        "models": models,
        "differences": differences,
        "duels": duels,
    }, people


def turns_asked(chat: ChatSet) -> dict[str, int]:
    """How many turns each question was asked: as many as it has, and as anybody was asked of any."""
    most = max((turn for exam in chat["exams"].values() for turn in said(exam)["turn"]), default=1)
    return {
        key: min(most, len(columns.get("turns") or [0]))
        for key, columns in chat["prompts"].read_columns().items()
    }


def read_chat(name: str, exam: EvalArtifacts, asked: Mapping[str, int]) -> EvalResult:
    answers = with_habits(said(exam))
    missing: list[str] = []
    for turn in range(1, max(asked.values(), default=0) + 1):
        wanted = sum(turn <= turns for turns in asked.values())
        if lost := wanted - answers.filter(pl.col("turn") == turn)["prompt_id"].n_unique():
            missing.append(f"it has no answer in turn {turn} to {lost} of {wanted} questions")
    marks = _marks(exam, answers, asked) if "scores" in exam else {}
    return EvalResult(name, exam["model"].path, [], answers, marks, {}, missing)


def said(exam: EvalArtifacts) -> pl.DataFrame:
    """Every answer with its turn."""
    columns = [
        "prompt_id",
        "sample_id",
        "setting",
        "completion",
        "finish_reason",
        "reasoning_tokens",
    ]
    rows = exam["samples"].read().filter(pl.col("setting") != KL)
    turn = (
        pl.when(pl.col("setting") == ANSWER)
        .then(1)
        .otherwise(pl.col("setting").str.extract(r"(\d+)$").cast(pl.Int64))
    )
    tokens = pl.col("token_ids").list.len().cast(pl.Int64)
    return rows.select(*columns, tokens=tokens, turn=turn).sort("prompt_id", "turn", "sample_id")


def _marks(
    exam: EvalArtifacts, answers: pl.DataFrame, asked: Mapping[str, int]
) -> dict[str, ModelScores]:
    rows = (
        exam["scores"].read().join(answers.select("sample_id", "turn"), on="sample_id", how="inner")
    )
    marks = {}
    for scorer in rows["scorer"].unique().sort():
        of = rows.filter(pl.col("scorer") == scorer)
        failed = of.filter(pl.col("status") == "failed").height
        by_turn: dict[str, dict[int, float]] = defaultdict(dict)
        for turn in of["turn"].unique().sort():
            means = by_prompt(
                of.filter((pl.col("turn") == turn) & pl.col("score").is_not_null()), "score"
            )
            marks[f"{scorer}{TURN}{turn}"] = ModelScores(means, frozenset(means), 0)
            for prompt, mean in means.items():
                by_turn[prompt][turn] = mean
        whole = {
            key: sum(of.values()) / len(of) for key, of in by_turn.items() if len(of) == asked[key]
        }
        marks[scorer] = ModelScores(dict(sorted(whole.items())), frozenset(asked), failed)
    return marks


def _model(model: EvalResult, names: list[str], draw: BootstrapConfig) -> dict[str, Any]:
    def told(scorer: str) -> dict[str, Any]:
        mark = model.marks[scorer]
        known = estimate([*mark.means.values()], draw)
        return {**aggregate.bounds(known), "n": known.n, "failed": mark.failed}

    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "answers": model.answers.height,
        "tokens": aggregate.bounds(estimate([*by_prompt(model.answers, "tokens").values()], draw)),
        "metrics": {name: told(name) for name in names if name in model.marks},
    }
