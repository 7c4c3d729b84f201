"""Prompts with every model's answer side by side, the largest gains and losses first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.report.analysis.statistics import TIE
from pipeline.report.formatting import format_number

MAX_GAINS, MAX_LOSSES, MAX_SAME = 12, 12, 6


@dataclass(frozen=True)
class Example:
    prompt: str
    gap: float
    answers: dict[str, list[Mapping[str, Any]]]

    @property
    def tone(self) -> str:
        return "up" if self.gap > TIE else "down" if self.gap < -TIE else "soft"

    @property
    def scores(self) -> dict[str, str]:
        return {model: _format_score(rows) for model, rows in self.answers.items()}


def _format_score(rows: Sequence[Mapping[str, Any]]) -> str:
    scores = [row["score"] for row in rows if row["score"] is not None]
    return format_number(sum(scores) / len(scores)) if scores else "no score"


def format_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """A single question as it is, a conversation with its roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def choose_examples(answers: pl.DataFrame, chosen: str | None) -> dict[str, list[Example]]:
    """By the chosen model's gain over SFT on each prompt; equal gains in order of their ids."""
    if chosen is None:
        return {}
    means = answers.group_by("model", "prompt_id", maintain_order=True).agg(pl.col("score").mean())
    of_sft, of_chosen = (
        means.filter(pl.col("model") == name).select("prompt_id", "score")
        for name in ("sft", chosen)
    )
    gap, score_gap = pl.col("gap"), pl.col("score") - pl.col("score_sft")
    gaps = of_chosen.join(of_sft, on="prompt_id", suffix="_sft")
    gaps = gaps.with_columns(gap=score_gap.round(9)).filter(gap.is_not_null()).sort("prompt_id")
    gains = gaps.filter(gap > TIE).sort("gap", descending=True, maintain_order=True)
    losses = gaps.filter(gap < -TIE).sort("gap", maintain_order=True)
    same = gaps.filter(gap.abs() <= TIE)
    groups = {
        "Gained most": gains.head(MAX_GAINS),
        "Lost most": losses.head(MAX_LOSSES),
        "Unchanged": same.head(MAX_SAME),
    }
    return {title: _collect_examples(answers, rows) for title, rows in groups.items() if len(rows)}


def _collect_examples(answers: pl.DataFrame, gaps: pl.DataFrame) -> list[Example]:
    examples = []
    for prompt_id, gap in zip(gaps["prompt_id"], gaps["gap"], strict=True):
        rows = answers.filter(pl.col("prompt_id") == prompt_id).to_dicts()
        by_model: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_model.setdefault(row["model"], []).append(row)
        examples.append(Example(rows[0]["prompt"], gap, by_model))
    return examples
