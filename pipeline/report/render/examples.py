"""Prompts with every model's answer side by side, the largest gains and losses first. Their text is always escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import polars as pl

from pipeline.report.analysis.statistics import TIE
from pipeline.report.formatting import number, signed
from pipeline.report.render.svg import colour

GAINS, LOSSES, SAME = 12, 12, 6
OPEN = 1


@dataclass(frozen=True)
class Example:
    prompt: str
    gap: float
    answers: dict[str, list[Mapping[str, Any]]]


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A lone question as it is, a conversation with its roles."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def choose(answers: pl.DataFrame, chosen: str | None) -> dict[str, list[Example]]:
    """By the chosen model's gain over SFT on each prompt; equal gains in order of their ids."""
    if chosen is None:
        return {}
    means = answers.group_by("model", "prompt_id", maintain_order=True).agg(pl.col("score").mean())
    of_sft, of_chosen = (
        means.filter(pl.col("model") == name).select("prompt_id", "score")
        for name in ("sft", chosen)
    )
    gaps = of_chosen.join(of_sft, on="prompt_id", suffix="_sft")
    gaps = gaps.with_columns(gap=(pl.col("score") - pl.col("score_sft")).round(9))
    gaps = gaps.filter(pl.col("gap").is_not_null()).sort("prompt_id")
    gains = (
        gaps.filter(pl.col("gap") > TIE)
        .sort("gap", descending=True, maintain_order=True)
        .head(GAINS)
    )
    losses = gaps.filter(pl.col("gap") < -TIE).sort("gap", maintain_order=True).head(LOSSES)
    same = gaps.filter(pl.col("gap").abs() <= TIE).head(SAME)
    groups = {"Gained most": gains, "Lost most": losses, "Unchanged": same}
    return {title: _examples(answers, rows) for title, rows in groups.items() if len(rows)}


def _examples(answers: pl.DataFrame, gaps: pl.DataFrame) -> list[Example]:
    found = []
    for prompt_id, gap in zip(gaps["prompt_id"], gaps["gap"], strict=True):
        rows = answers.filter(pl.col("prompt_id") == prompt_id).to_dicts()
        by_model: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_model.setdefault(row["model"], []).append(row)
        found.append(Example(rows[0]["prompt"], gap, by_model))
    return found


def examples_html(answers: pl.DataFrame, chosen: str | None) -> str:
    return "".join(_group(title, found) for title, found in choose(answers, chosen).items())


def _group(title: str, found: Sequence[Example]) -> str:
    body = "\n".join(_example(example, index < OPEN) for index, example in enumerate(found))
    return f'<h3>{title}</h3><div class="sheet">{body}</div>'


def _example(example: Example, opened: bool) -> str:
    tone = "up" if example.gap > TIE else "down" if example.gap < -TIE else "soft"
    answers = "".join(_answers(model, rows) for model, rows in example.answers.items())
    gap = f'<span class="gap {tone}">{signed(example.gap)}</span>'
    return (
        f'<details class="example"{" open" if opened else ""}><summary>'
        f'{gap}<span class="ask">{escape(example.prompt)}</span></summary>'
        f'<div class="answers">{answers}</div></details>'
    )


def _answers(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
    known = [row["score"] for row in rows if row["score"] is not None]
    score = number(sum(known) / len(known)) if known else "no score"
    texts = "".join(f"<p>{escape(row['completion'])}{_cut(row)}</p>" for row in rows)
    return (
        f'<div class="answer {colour(model)}"><h4>{escape(model)} <span>{score}</span></h4>'
        f'<div class="scroll" tabindex="0">{texts}</div></div>'
    )


def _cut(row: Mapping[str, Any]) -> str:
    return ' <span class="chip">truncated</span>' if row["finish_reason"] == "length" else ""
