"""Published benchmarks in the report: each model's figures, the difference to SFT by question, and what was lost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.artifacts import EvalArtifacts, Metrics
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.analysis.statistics import BootstrapConfig, difference, holm
from pipeline.report.analysis.verdict import LEAST_PROMPTS, Question, Row, hold_back
from pipeline.report.formatting import interval, number, signed

NO_FIGURE = "benchmark {benchmark}: {metric} is no number, since some question has an answer too unlikely to be weighed"
FIGURES = "task", "metric", "value", "stderr", "n", "higher_is_better"


def benchmarks(exams: Mapping[str, EvalArtifacts], draw: BootstrapConfig) -> list[dict[str, Any]]:
    """A row for each benchmark, figure and model in their order; one without figures says why it is absent."""
    names = dict.fromkeys(name for exam in exams.values() for name in exam.get("metrics", {}))
    rows = [
        row
        for name in names
        for model, exam in exams.items()
        for row in _of_model(name, model, exam, exams, draw)
    ]
    for name in names:
        _correct([row for row in rows if row["benchmark"] == name and row["chief"] and row["gain"]])
    return rows


def _of_model(
    name: str,
    model: str,
    exam: EvalArtifacts,
    exams: Mapping[str, EvalArtifacts],
    draw: BootstrapConfig,
) -> Iterator[dict[str, Any]]:
    found = exam.get("metrics", {}).get(name)
    if found is None:
        return
    if found.unavailable_reason:
        named = {"benchmark": name, "model": model, **dict.fromkeys(FIGURES)}
        yield {**named, "chief": True, "cut": 0, "gain": None, "absent": found.unavailable_reason}
        return
    read, sft = found.read(), exams.get(SFT, {}).get("metrics", {}).get(name)
    paired = found if model != SFT and sft and not sft.unavailable_reason else None
    for figure in read["figures"]:
        if figure["task"] != read["task"]:
            continue  # one of a group's tasks: metrics.json has it
        gain = _gain(paired, sft, figure["metric"], draw) if paired and sft else None
        told = {key: figure[key] for key in FIGURES}
        chief = figure["metric"] == read["chief"]["metric"]
        named = {"benchmark": name, "model": model, **told}
        yield {**named, "chief": chief, "cut": read["cut"], "gain": gain, "absent": None}


def _gain(of: Metrics, sft: Metrics, metric: str, draw: BootstrapConfig) -> dict[str, Any] | None:
    """By question; None where a figure is no mean over questions."""
    a, b = _by_question(of, metric), _by_question(sft, metric)
    if not _told(a) or not _told(b):
        return None
    found = difference(_told(a), _told(b), len(a.keys() | b.keys()), draw)
    told = {
        "mean": found.estimate.mean,
        "low": found.estimate.low,
        "high": found.estimate.high,
        "n": found.estimate.n,
    }
    return {
        **told,
        "missing": found.missing,
        "detectable": found.detectable,
        "p_value": found.p_value,
    }


def _by_question(metrics: Metrics, metric: str) -> dict[str, float | None]:
    """The hash of a question is part of its name: rows that changed between two models are no pair."""
    key = pl.concat_str("task", "doc_id", "doc", separator="/")
    return dict(
        metrics.read_items().filter(pl.col("metric") == metric).select(key, "value").iter_rows()
    )


def _told(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _correct(rows: Sequence[dict[str, Any]]) -> None:
    """The models that one benchmark holds against SFT are one family."""
    for row, p_holm in zip(rows, holm([row["gain"]["p_value"] for row in rows]), strict=True):
        row["gain"]["p_holm"] = p_holm


def absences(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line for each benchmark that is not there, or has no figure: for which models and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        why = row["absent"] or (
            NO_FIGURE.format(**row) if row["chief"] and row["value"] is None else None
        )
        if why:
            reasons.setdefault((row["benchmark"], why), []).append(row["model"])
    return [
        {"model": ", ".join(models), "what": " ".join(why.split())}
        for (_, why), models in reasons.items()
    ]


# ── what may not be lost ──────────────────────────────────────────────────────────────────────────────────────────


def retention(
    limits: Mapping[str, float], question: Question, rows: Sequence[Row], differences: Sequence[Row]
) -> list[dict[str, Any]]:
    """Each capability that evaluate.retention names: kept, lost, perhaps lost, or unknown."""
    if question.chosen in (None, SFT):
        return []
    return [
        _retained(name, limit, *_change(name, question, rows, differences))
        for name, limit in limits.items()
    ]


def _change(
    name: str, question: Question, rows: Sequence[Row], differences: Sequence[Row]
) -> tuple[Row | None, bool, str]:
    """The chosen model's difference to SFT, whether higher is better, and why it is not known."""
    own = [
        row
        for row in rows
        if (row["benchmark"], row["model"], row["chief"]) == (name, question.chosen, True)
    ]
    if not own:
        gap = next(
            (d for d in differences if (d["model"], d["scorer"]) == (question.chosen, name)), None
        )
        return gap, True, f"no prompt has a score of {name} for both models"
    [row] = own
    if row["absent"]:
        return None, True, "the benchmark is absent"
    return (
        row["gain"],
        row["higher_is_better"] is not False,
        "its questions cannot be paired with those of sft",
    )


def _retained(
    name: str, limit: float, gap: Row | None, higher: bool, unknown: str
) -> dict[str, Any]:
    told = {"name": name, "limit": limit}
    if gap is None or not gap["n"]:
        return {
            **told,
            "state": "unknown",
            "change": None,
            "why": f"Whether {name} was kept is not known: {unknown}.",
        }
    change = {key: gap[key] for key in ("mean", "low", "high", "n")}
    ends = f", {interval(gap, signed)}" if gap["low"] is not None else ""
    figures = f"{signed(gap['mean'])}{ends}, on {gap['n']}"
    if gap["n"] < LEAST_PROMPTS:
        why = f"Whether {name} was kept is not known: too few to tell ({figures})."
        return {**told, "state": "unknown", "change": change, "why": why}
    worst, best = (gap["low"], gap["high"]) if higher else (-gap["high"], -gap["low"])
    state = "lost" if best < -limit else "perhaps" if worst < -limit else "kept"
    return {**told, "state": state, "change": change, "why": _words(name, limit, state, figures)}


def _words(name: str, limit: float, state: str, figures: str) -> str:
    match state:
        case "lost":
            return f"{name} was lost ({figures}; at most {number(limit)} was allowed)."
        case "perhaps":
            return f"{name} may have fallen by more than {number(limit)} ({figures})."
        case _:
            return f"{name} was kept ({figures}; {number(limit)} was allowed)."


def held(verdict: Mapping[str, str], retained: Sequence[Row], chosen: str | None) -> dict[str, str]:
    """The verdict with what was lost on the way: a certain loss is a *no*, an unknown one no *yes*."""
    lost, open_ = (
        [row for row in retained if row["state"] in states]
        for states in (["lost"], ["perhaps", "unknown"])
    )
    better, why = verdict["better"], verdict["why"]
    if lost:
        told = " ".join(row["why"] for row in lost)
        why, better = f"{why} But {told} {hold_back(chosen)}.", "no"
    elif better == "yes" and any(row["state"] == "unknown" for row in open_):
        better = "unclear"
    return {"better": better, "why": " ".join([why, *(row["why"] for row in open_)])}
