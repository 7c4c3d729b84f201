"""What differs between the chosen model and SFT, and what does not as far as the prompts show.

Style is compared prompt by prompt, as scores are. The score by the primary scorer has changed
where its interval excludes 0, which is the verdict's own criterion; any other figure where its
corrected p is below the level.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.analysis.eval_results import SFT, EvalResult, mean_by_prompt
from pipeline.report.analysis.multiple_testing import is_primary_test
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    ByPrompt,
    adjust_holm,
    estimate_difference,
)
from pipeline.report.analysis.text_metrics import measure_other_language
from pipeline.report.analysis.verdict import MIN_PROMPTS
from pipeline.report.formatting import (
    UNKNOWN,
    ReportRow,
    format_interval,
    format_share,
    format_signed,
)

HABITS = {
    "tokens": "Tokens per answer",
    "truncated": "Answers cut at the token limit",
    "repetition": "Repetition within an answer",
    "refusals": "Refusals",
    "markdown": "Answers with Markdown",
    "other_language": "Answers in another language",
}
CHANGED_TITLE = "What changed"
UNCHANGED_TITLE = "What did not change, as far as the prompts show"
# Below a title whose list is empty.
EMPTY_LISTS = {
    CHANGED_TITLE: "Nothing that these prompts show.",
    UNCHANGED_TITLE: "Each figure changed.",
}


@dataclass(frozen=True)
class Change:
    name: str
    figures: str
    changed: bool
    tone: str = ""


# ── from answers to report.json ─────────────────────────────────────────────


def describe_changes(
    results: Sequence[EvalResult],
    chosen: str | None,
    last_words: Mapping[str, str],
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """The chosen model's difference to SFT in each habit; all habits are one family of tests."""
    models = {model.name: model for model in results}
    if chosen is None or chosen not in models or SFT not in models or chosen == SFT:
        return []
    own, sft = models[chosen], models[SFT]
    rows = [_describe_change(habit, own, sft, last_words, bootstrap) for habit in HABITS]
    adjusted = adjust_holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def read_habit(habit: str, model: EvalResult, last_words: Mapping[str, str]) -> ByPrompt:
    if habit == "other_language":
        return measure_other_language(model.answers, last_words)
    return mean_by_prompt(model.answers, habit)


def _describe_change(
    habit: str,
    model: EvalResult,
    sft: EvalResult,
    last_words: Mapping[str, str],
    bootstrap: BootstrapConfig,
) -> dict[str, Any]:
    own, of_sft = (read_habit(habit, each, last_words) for each in (model, sft))
    difference = estimate_difference(own, of_sft, len(own.keys() | of_sft.keys()), bootstrap)
    estimate = difference.estimate
    return {
        "habit": habit,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "p_value": difference.p_value,
    }


# ── from report.json to sentences ───────────────────────────────────────────


def write_note(report: ReportRow) -> str:
    evaluation = report["evaluation"]
    alpha = f"{1 - evaluation['level']:.3g}"
    return (
        f"Against sft, prompt by prompt. The score by {evaluation['scorer']} is the one test"
        " planned beforehand: it changed if its interval excludes 0, on"
        f" {MIN_PROMPTS} prompts or more. Anything else changed if its p, corrected for its family"
        f" of tests, is below {alpha}, so an interval without 0 is not enough."
    )


def list_changes(report: ReportRow) -> list[Change]:
    """Scores first, then judges, then style."""
    evaluation = report["evaluation"]
    chosen, alpha = evaluation["chosen"], 1 - evaluation["level"]
    gaps = [row for row in report["differences"] if row["model"] == chosen and row["n"]]
    scorers = {gap["scorer"] for gap in gaps}
    contests = [
        row
        for row in report["duels"]
        if (row["a"], row["b"]) == (chosen, SFT)
        and row["judge"] not in scorers
        and row["win_rate"] is not None
    ]
    habits = [row for row in report["changes"] if row["n"]]
    return [
        *(_format_score_change(row, alpha, evaluation) for row in gaps),
        *(_format_contest(row, alpha) for row in contests),
        *(_format_habit_change(row, alpha) for row in habits),
    ]


def group_changes(report: ReportRow) -> dict[str, list[Change]]:
    """What changed and what did not, by title; nothing where nothing was compared."""
    listed = list_changes(report)
    changed = [each for each in listed if each.changed]
    unchanged = [each for each in listed if not each.changed]
    return {CHANGED_TITLE: changed, UNCHANGED_TITLE: unchanged} if listed else {}


def _format_score_change(row: ReportRow, alpha: float, evaluation: ReportRow) -> Change:
    is_primary = is_primary_test(row, evaluation["chosen"], evaluation["scorer"])
    changed = _decides(row) if is_primary else _has_changed(row, alpha)
    tone = ("up" if row["mean"] > 0 else "down") if changed else ""
    return Change(f"Score by {row['scorer']}", _format_gain(row, format_signed), changed, tone)


def _format_contest(row: ReportRow, alpha: float) -> Change:
    changed = _has_changed(row, alpha)
    tone = ("up" if row["win_rate"] > 0.5 else "down") if changed else ""
    ends = format_interval(row, format_share)
    figures = f"win rate {format_share(row['win_rate'])} ({ends}), a tie is half a win"
    return Change(f"Contests with sft, judged by {row['judge']}", figures, changed, tone)


def _format_habit_change(row: ReportRow, alpha: float) -> Change:
    unit = "" if row["habit"] == "tokens" else " points"
    write = _format_tokens if row["habit"] == "tokens" else _format_points
    return Change(HABITS[row["habit"]], _format_gain(row, write, unit), _has_changed(row, alpha))


def _has_changed(row: ReportRow, alpha: float) -> bool:
    return row["p_holm"] is not None and row["p_holm"] < alpha


def _decides(row: ReportRow) -> bool:
    """As the verdict does: the interval excludes 0, on enough prompts."""
    return row["n"] >= MIN_PROMPTS and (row["low"] > 0 or row["high"] < 0)


def _format_gain(row: ReportRow, write: Callable[[float | None], str], unit: str = "") -> str:
    """An interval of one point is left out: it adds nothing."""
    has_interval = row["low"] is not None and row["low"] != row["high"]
    ends = f" ({format_interval(row, write)})" if has_interval else ""
    return f"{write(row['mean'])}{unit}{ends}"


def _format_tokens(value: float | None) -> str:
    return format_signed(value, 1)


def _format_points(value: float | None) -> str:
    """A difference of shares, in percentage points."""
    return UNKNOWN if value is None else format_signed(100 * value, 1)
