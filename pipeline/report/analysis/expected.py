"""Published figures next to this run's: SFT before, the chosen model after, and how far off."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from pipeline.config import Expectation
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.analysis.verdict import VerdictBasis
from pipeline.report.formatting import ROUNDING_ERROR, ReportRow, format_number

# How a figure compares with the published one: key of the report → words.
STATES = {
    "within": "within the tolerance",
    "perhaps": "outside the tolerance, perhaps by chance",
    "above": "above the tolerance",
    "below": "below the tolerance",
    "unknown": "not known",
}


def compare_expected(
    expect: Mapping[str, Expectation] | None,
    basis: VerdictBasis,
    models: Sequence[ReportRow],
    benchmarks: Sequence[ReportRow],
) -> list[dict[str, Any]]:
    """Two rows for each metric that `expect` names: sft, and the chosen model."""
    chosen = None if basis.chosen == SFT else basis.chosen
    rows = []
    for metric, expected in (expect or {}).items():
        for model, published in ((SFT, expected.before), (chosen, expected.after)):
            got, margin = _find_figure(metric, model, basis.level, models, benchmarks)
            state = _classify_figure(published, got, margin, expected.tolerance)
            figures = {"published": published, "got": got, "margin": margin, "state": state}
            row = {"metric": metric, "model": model, **figures, "tolerance": expected.tolerance}
            rows.append({**row, "source": expected.source, "why": _explain_figure(row)})
    return rows


def _find_figure(
    metric: str,
    model: str | None,
    level: float,
    models: Sequence[ReportRow],
    benchmarks: Sequence[ReportRow],
) -> tuple[float | None, float | None]:
    """A model's figure, and half the width of its interval."""
    key = (metric, model, True)
    for row in benchmarks:
        if (row["benchmark"], row["model"], row["chief"]) == key:
            error = row["stderr"]
            factor = NormalDist().inv_cdf((1 + level) / 2)
            return row["value"], None if error is None else factor * error
    for row in models:
        if row["name"] == model and metric in row["metrics"]:
            score = row["metrics"][metric]
            width = None if score["low"] is None else (score["high"] - score["low"]) / 2
            return score["mean"], width
    return None, None


def _classify_figure(
    published: float | None, got: float | None, margin: float | None, tolerance: float
) -> str:
    if published is None or got is None:
        return "unknown"
    off = abs(got - published) - tolerance
    if off <= ROUNDING_ERROR:
        return "within"
    if margin is not None and off <= margin:
        return "perhaps"
    return "above" if got > published else "below"


def _explain_figure(row: ReportRow) -> str:
    """In one sentence; without a chosen model there is no figure after training."""
    margin = "" if row["margin"] is None else f" ± {format_number(row['margin'])}"
    got = "nothing" if row["got"] is None else f"{format_number(row['got'])}{margin}"
    expected = "unknown" if row["published"] is None else format_number(row["published"])
    model = row["model"] or "the trained model"
    return f"{row['metric']} of {model}: expected {expected}, got {got}; {STATES[row['state']]}."
