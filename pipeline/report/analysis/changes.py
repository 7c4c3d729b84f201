"""What the chosen model does otherwise than SFT, and what it does not, as far as so many prompts can tell.

How it writes is compared prompt by prompt as its scores are; a figure has changed when its p, corrected, says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.analysis.eval_results import SFT, EvalResult, by_prompt
from pipeline.report.analysis.statistics import BootstrapConfig, ByPrompt, difference, holm
from pipeline.report.analysis.text_metrics import other_language
from pipeline.report.formatting import UNKNOWN, Row, interval, share, signed

HABITS = {
    "tokens": "Tokens per answer",
    "truncated": "Answers cut at the limit",
    "repetition": "Repetition within an answer",
    "refusals": "Refusals",
    "markdown": "Answers with Markdown",
    "other_language": "Answers in another language",
}


@dataclass(frozen=True)
class Change:
    name: str
    figures: str
    changed: bool
    tone: str = ""


# ── from answers to report.json ───────────────────────────────────────────────────────────────────────────────────


def changes(
    examined: Sequence[EvalResult],
    chosen: str | None,
    asked: Mapping[str, str],
    draw: BootstrapConfig,
) -> list[dict[str, Any]]:
    """A row for each habit, the chosen model's minus SFT's; all habits are one family of tests."""
    models = {model.name: model for model in examined}
    if chosen is None or chosen not in models or SFT not in models or chosen == SFT:
        return []
    rows = [_change(habit, models[chosen], models[SFT], asked, draw) for habit in HABITS]
    counted = holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, counted, strict=True)]


def values_of(habit: str, model: EvalResult, asked: Mapping[str, str]) -> ByPrompt:
    return (
        other_language(model.answers, asked)
        if habit == "other_language"
        else by_prompt(model.answers, habit)
    )


def _change(
    habit: str, model: EvalResult, sft: EvalResult, asked: Mapping[str, str], draw: BootstrapConfig
) -> dict[str, Any]:
    own, of_sft = (values_of(habit, each, asked) for each in (model, sft))
    found = difference(own, of_sft, len(own.keys() | of_sft.keys()), draw)
    known = found.estimate
    figures = {
        "mean": known.mean,
        "low": known.low,
        "high": known.high,
        "n": known.n,
        "p_value": found.p_value,
    }
    return {"habit": habit, **figures}


# ── from report.json to sentences ─────────────────────────────────────────────────────────────────────────────────


def note(report: Row) -> str:
    least = f"{1 - report['exam']['level']:.3g}"
    return f"Against sft, prompt by prompt; changed is what has a p below {least}, corrected for its family of tests."


def told(report: Row) -> list[Change]:
    """Scores first, then judges, then how it writes."""
    exam, least = report["exam"], 1 - report["exam"]["level"]
    gaps = [row for row in report["differences"] if row["model"] == exam["chosen"] and row["n"]]
    fought = [row for row in report["duels"] if (row["a"], row["b"]) == (exam["chosen"], SFT)]
    scorers = {gap["scorer"] for gap in gaps}
    judged = [row for row in fought if row["judge"] not in scorers and row["win_rate"] is not None]
    habits = [row for row in report["changes"] if row["n"]]
    return [
        *(_scored(row, least) for row in gaps),
        *(_judged(row, least) for row in judged),
        *(_written(row, least) for row in habits),
    ]


def _scored(row: Row, least: float) -> Change:
    changed = _is_told(row, least)
    tone = ("up" if row["mean"] > 0 else "down") if changed else ""
    return Change(f"Score by {row['scorer']}", _gain(row, signed), changed, tone)


def _judged(row: Row, least: float) -> Change:
    changed = _is_told(row, least)
    tone = ("up" if row["win_rate"] > 0.5 else "down") if changed else ""
    figures = f"win rate {share(row['win_rate'])} ({interval(row, share)}), a tie is half a win"
    return Change(f"Contests with sft, judged by {row['judge']}", figures, changed, tone)


def _written(row: Row, least: float) -> Change:
    unit = "" if row["habit"] == "tokens" else " points"
    write = _tokens if row["habit"] == "tokens" else _points
    return Change(HABITS[row["habit"]], _gain(row, write, unit), _is_told(row, least))


def _is_told(row: Row, least: float) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < least


def _gain(row: Row, write: Callable[[float | None], str], unit: str = "") -> str:
    """The interval of one point says nothing more."""
    ends = (
        f" ({interval(row, write)})" if row["low"] is not None and row["low"] != row["high"] else ""
    )
    return f"{write(row['mean'])}{unit}{ends}"


def _tokens(value: float | None) -> str:
    return signed(value, 1)


def _points(value: float | None) -> str:
    """A difference of shares, in points of a hundred."""
    return UNKNOWN if value is None else signed(100 * value, 1)
