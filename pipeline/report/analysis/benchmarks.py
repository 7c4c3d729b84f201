"""Published benchmarks: each model's figures, the difference to SFT by question, what was lost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.artifacts import EvalArtifacts, Metrics
from pipeline.report.analysis.aggregate import describe_estimate
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.analysis.statistics import BootstrapConfig, adjust_holm, estimate_difference
from pipeline.report.analysis.verdict import MIN_PROMPTS, VerdictBasis, advise_staying_close
from pipeline.report.formatting import ReportRow, format_interval, format_number, format_signed

NO_FIGURE = (
    "benchmark {benchmark}: {metric} has no value, "
    "because the answer to some question is too unlikely to be weighed"
)
FIGURES = ("task", "metric", "value", "stderr", "n", "higher_is_better")


def describe_benchmarks(
    evals: Mapping[str, EvalArtifacts], bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    """A row for each benchmark, figure and model in their order; without figures, the reason."""
    names = dict.fromkeys(name for own in evals.values() for name in own.get("metrics", {}))
    rows = [
        row
        for name in names
        for model, artifacts in evals.items()
        for row in _describe_model(name, model, artifacts, evals, bootstrap)
    ]
    for name in names:
        _correct_family(
            [row for row in rows if row["benchmark"] == name and row["chief"] and row["gain"]]
        )
    return rows


def _describe_model(
    name: str,
    model: str,
    artifacts: EvalArtifacts,
    evals: Mapping[str, EvalArtifacts],
    bootstrap: BootstrapConfig,
) -> Iterator[dict[str, Any]]:
    metrics = artifacts.get("metrics", {}).get(name)
    if metrics is None:
        return
    head = {"benchmark": name, "model": model}
    if metrics.unavailable_reason:
        empty = {"chief": True, "cut": 0, "gain": None, "absent": metrics.unavailable_reason}
        yield {**head, **dict.fromkeys(FIGURES), **empty}
        return
    published, sft = metrics.read(), evals.get(SFT, {}).get("metrics", {}).get(name)
    paired = metrics if model != SFT and sft and not sft.unavailable_reason else None
    for figure in published["figures"]:
        if figure["task"] != published["task"]:
            continue  # one of a group's tasks: metrics.json has it
        gain = _describe_gain(paired, sft, figure["metric"], bootstrap) if paired and sft else None
        chief = figure["metric"] == published["chief"]["metric"]
        figures = {key: figure[key] for key in FIGURES}
        more = {"chief": chief, "cut": published["cut"], "gain": gain, "absent": None}
        yield {**head, **figures, **more}


def _describe_gain(
    own: Metrics, sft: Metrics, metric: str, bootstrap: BootstrapConfig
) -> dict[str, Any] | None:
    """By question; None where a figure is not a mean over questions."""
    a, b = _values_by_question(own, metric), _values_by_question(sft, metric)
    if not _drop_unknown(a) or not _drop_unknown(b):
        return None
    expected = len(a.keys() | b.keys())
    difference = estimate_difference(_drop_unknown(a), _drop_unknown(b), expected, bootstrap)
    return {
        **describe_estimate(difference.estimate),
        "missing": difference.missing,
        "detectable": difference.detectable,
        "p_value": difference.p_value,
    }


def _values_by_question(metrics: Metrics, metric: str) -> dict[str, float | None]:
    """A question's key includes its hash: rows that changed between two models are not paired."""
    key = pl.concat_str("task", "doc_id", "doc", separator="/")
    return dict(
        metrics.read_items().filter(pl.col("metric") == metric).select(key, "value").iter_rows()
    )


def _drop_unknown(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}


def _correct_family(rows: Sequence[dict[str, Any]]) -> None:
    """The models that one benchmark compares with SFT are one family."""
    p_values = adjust_holm([row["gain"]["p_value"] for row in rows])
    for row, p_holm in zip(rows, p_values, strict=True):
        row["gain"]["p_holm"] = p_holm


def list_unavailable(rows: Sequence[ReportRow]) -> list[dict[str, str]]:
    """One line per benchmark that is unavailable or has no figure: for which models and why."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        without_value = row["chief"] and row["value"] is None
        why = row["absent"] or (NO_FIGURE.format(**row) if without_value else None)
        if why:
            reasons.setdefault((row["benchmark"], why), []).append(row["model"])
    return [
        {"model": ", ".join(models), "what": " ".join(why.split())}
        for (_, why), models in reasons.items()
    ]


# ── what must not be lost ───────────────────────────────────────────────────


def check_retention(
    limits: Mapping[str, float],
    basis: VerdictBasis,
    rows: Sequence[ReportRow],
    differences: Sequence[ReportRow],
) -> list[dict[str, Any]]:
    """Each capability that evaluate.retention names: kept, lost, perhaps lost, or unknown."""
    if basis.chosen in (None, SFT):
        return []
    return [
        _classify_change(name, limit, *_find_change(name, basis, rows, differences))
        for name, limit in limits.items()
    ]


def _find_change(
    name: str, basis: VerdictBasis, rows: Sequence[ReportRow], differences: Sequence[ReportRow]
) -> tuple[ReportRow | None, bool, str]:
    """The chosen model's difference to SFT, whether higher is better, and why it may be unknown."""
    key = (name, basis.chosen, True)
    own = [row for row in rows if (row["benchmark"], row["model"], row["chief"]) == key]
    if not own:
        pair = (basis.chosen, name)
        gap = next((row for row in differences if (row["model"], row["scorer"]) == pair), None)
        return gap, True, f"no prompt has a score of {name} for both models"
    [row] = own
    if row["absent"]:
        return None, True, "the benchmark is unavailable"
    higher_is_better = row["higher_is_better"] is not False
    return row["gain"], higher_is_better, "its questions cannot be paired with those of sft"


def _classify_change(
    name: str, limit: float, gap: ReportRow | None, higher_is_better: bool, unknown: str
) -> dict[str, Any]:
    head = {"name": name, "limit": limit}
    if gap is None or not gap["n"]:
        why = f"Whether {name} was kept is not known: {unknown}."
        return {**head, "state": "unknown", "change": None, "why": why}
    change = {key: gap[key] for key in ("mean", "low", "high", "n")}
    ends = f", {format_interval(gap, format_signed)}" if gap["low"] is not None else ""
    figures = f"{format_signed(gap['mean'])}{ends}, on {gap['n']}"
    if gap["n"] < MIN_PROMPTS:
        why = f"Whether {name} was kept is not known: too few to tell ({figures})."
        return {**head, "state": "unknown", "change": change, "why": why}
    worst, best = (gap["low"], gap["high"]) if higher_is_better else (-gap["high"], -gap["low"])
    state = "lost" if best < -limit else "perhaps" if worst < -limit else "kept"
    why = _explain_state(name, limit, state, figures)
    return {**head, "state": state, "change": change, "why": why}


def _explain_state(name: str, limit: float, state: str, figures: str) -> str:
    match state:
        case "lost":
            return f"{name} was lost ({figures}; at most {format_number(limit)} was allowed)."
        case "perhaps":
            return f"{name} may have fallen by more than {format_number(limit)} ({figures})."
        case _:
            return f"{name} was kept ({figures}; {format_number(limit)} was allowed)."


def apply_retention(
    verdict: Mapping[str, str], retained: Sequence[ReportRow], chosen: str | None
) -> dict[str, str]:
    """The verdict after losses: a certain one makes it a *no*, an unknown one at most unclear."""
    lost = [row for row in retained if row["state"] == "lost"]
    uncertain = [row for row in retained if row["state"] in ("perhaps", "unknown")]
    better, why = verdict["better"], verdict["why"]
    if lost:
        losses = " ".join(row["why"] for row in lost)
        why, better = f"{why} But {losses} {advise_staying_close(chosen)}.", "no"
    elif better == "yes" and any(row["state"] == "unknown" for row in uncertain):
        better = "unclear"
    return {"better": better, "why": " ".join([why, *(row["why"] for row in uncertain)])}
