"""runs/index.html: a row for every run, from plain values and its report.json."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.formatting import (
    BADGES,
    ReportRow,
    format_duration,
    format_interval,
    format_number,
    format_signed,
)
from pipeline.report.render.environment import render_document
from pipeline.report.render.table import NO_METRIC, Cell, find_difference, join_details

# How each state is shown: in the order of the lead's counts, with the colour of its badge.
STATES = {"running": "running", "finished": "plain", "interrupted": "unclear", "failed": "no"}
NO_BOUNDS = {"mean": None, "low": None, "high": None}


@dataclass(frozen=True)
class RunFigures:
    """What a run's report says of the model that it chose."""

    better: str
    chosen: str | None
    scorer: str
    split: str
    before: float | None
    after: float | None
    gap: Mapping[str, Any]
    kl: Mapping[str, Any]
    tokens: float | None
    sft_tokens: float | None


@dataclass(frozen=True)
class RunRow:
    """A run, or a sweep by its best point.

    `choices` is what was typed, `detail` how far it is, `links` are names and addresses of files.
    """

    name: str
    choices: str
    started: str
    status: str
    detail: str
    reason: str  # why it failed
    seconds: float
    figures: RunFigures | None
    links: Sequence[tuple[str, str]]
    is_latest: bool

    @property
    def badge(self) -> tuple[str, str]:
        """Its colour and text: a finished run's verdict, or else the state."""
        if self.status == "finished" and self.figures:
            return self.figures.better, BADGES[self.figures.better]
        return STATES[self.status], self.status.capitalize()

    @property
    def note(self) -> str:
        """What is written under the badge: the chosen model, or how far the run is."""
        is_known = self.status == "finished" and self.figures and self.figures.chosen
        model = f"{self.figures.chosen} chosen" if is_known and self.figures else ""
        return ", ".join(text for text in (self.detail, model) if text)

    @property
    def cells(self) -> list[tuple[str, Cell]]:
        return [
            ("Score", _make_score_cell(self.figures)),
            ("KL to sft, nats", _make_kl_cell(self.figures)),
            ("Tokens per answer", _make_tokens_cell(self.figures)),
            ("Time", Cell(format_duration(self.seconds or None))),
        ]


def read_figures(report: ReportRow) -> RunFigures | None:
    """None where report.json lacks a part, as that of another version may."""
    try:
        return _read_parts(report)
    except (KeyError, TypeError, AttributeError):
        return None


def _read_parts(report: ReportRow) -> RunFigures | None:
    evaluation, better = report["evaluation"], report["verdict"]["better"]
    models = {model["name"]: model for model in report["models"]}
    chosen, scorer = evaluation["chosen"], evaluation["scorer"]
    after, before = models.get(chosen), models.get("sft")
    gap = find_difference(report, chosen, scorer)
    return RunFigures(
        better if better in BADGES else "unclear",
        chosen,
        scorer,
        evaluation["split"],
        _read_mean(before, scorer),
        _read_mean(after, scorer),
        {name: gap[name] for name in NO_BOUNDS} if gap else NO_BOUNDS,
        {name: after["kl"][name] for name in NO_BOUNDS} if after else NO_BOUNDS,
        after["tokens"]["mean"] if after else None,
        before["tokens"]["mean"] if before else None,
    )


def _read_mean(model: ReportRow | None, scorer: str) -> float | None:
    return model["metrics"].get(scorer, NO_METRIC)["mean"] if model else None


def _make_score_cell(figures: RunFigures | None) -> Cell:
    if figures is None or figures.after is None:
        return Cell(format_number(None))
    on = f"{figures.scorer} on {figures.split}"
    if figures.chosen == "sft":
        return Cell(format_number(figures.after), on)
    gap = figures.gap
    tone = "up" if (gap["low"] or 0) > 0 else "down" if (gap["high"] or 0) < 0 else ""
    change = join_details(format_signed(gap["mean"]), format_interval(gap, format_signed))
    text = f"{format_number(figures.before)} → {format_number(figures.after)}"
    return Cell(text, f"{change}; {on}" if change else on, tone)


def _make_kl_cell(figures: RunFigures | None) -> Cell:
    if figures is None:
        return Cell(format_number(None))
    kl = figures.kl
    ends = format_interval(kl, lambda value: format_number(value, 2))
    return Cell(format_number(kl["mean"], 2), join_details(ends))


def _make_tokens_cell(figures: RunFigures | None) -> Cell:
    if figures is None or figures.tokens is None:
        return Cell(format_number(None))
    before = "" if figures.chosen == "sft" else f"sft {format_number(figures.sft_tokens, 1)}"
    return Cell(format_number(figures.tokens, 1), before)


def render_index(folder: str, rows: Sequence[RunRow], left_out: Sequence[str], written: str) -> str:
    return render_document(
        "index.html",
        title="Runs",
        badge="",
        better="",
        lead=write_lead(folder, rows, written),
        rows=rows,
        left_out=left_out,
    )


def write_lead(folder: str, rows: Sequence[RunRow], written: str) -> str:
    counts = Counter(row.status for row in rows)
    listed = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{listed or 'None'} in {folder}. Written {written}, when one last began or ended."
