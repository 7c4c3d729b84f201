"""The tables of benchmarks: each model's figure, the difference to SFT, and retention."""

from collections.abc import Sequence

from pipeline.errors import pluralize
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.formatting import (
    UNKNOWN,
    ReportRow,
    format_count,
    format_interval,
    format_number,
    format_signed,
)
from pipeline.report.render.table import Cell, ReportTable

STATES = {"kept": "kept", "perhaps": "perhaps lost", "lost": "lost", "unknown": "not known"}


def build_benchmarks(report: ReportRow) -> ReportTable:
    rows = [row for row in report["benchmarks"] if row["chief"] or row["absent"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    # sft has no difference to itself.
    chosen = report["evaluation"]["chosen"] if report["evaluation"]["chosen"] != SFT else None
    columns = (
        "benchmark",
        "figure",
        "questions",
        *models,
        *([f"Δ {chosen}"] if chosen in models else []),
    )
    names = dict.fromkeys(row["benchmark"] for row in rows)
    note = (
        "One figure per benchmark with its standard error, and the paired difference to sft on the"
        " same questions; report.json has the other figures."
    )
    table = [_benchmark_row(name, rows, models, chosen) for name in names]
    return ReportTable("Benchmarks", note, columns, table)


def _benchmark_row(
    name: str, rows: Sequence[ReportRow], models: Sequence[str], chosen: str | None
) -> list[Cell]:
    by_model = {row["model"]: row for row in rows if row["benchmark"] == name}
    available = [row for row in by_model.values() if not row["absent"]]
    metric, questions = Cell("unavailable"), Cell(UNKNOWN)
    if available:
        metric = Cell(available[0]["metric"])
        questions = Cell(format_count(available[0]["n"]), _format_cut(available))
    figures = [_figure_cell(by_model.get(model)) for model in models]
    gain = [_gain_cell(by_model.get(chosen))] if chosen in models else []
    return [Cell(name), metric, questions, *figures, *gain]


def _format_cut(available: Sequence[ReportRow]) -> str:
    """lm-eval cuts a prompt that does not fit into the context."""
    most = max(row["cut"] for row in available)
    return f"{pluralize(most, 'request', grouped=True)} cut to fit" if most else ""


def _figure_cell(row: ReportRow | None) -> Cell:
    if row is None or row["absent"]:
        return Cell(UNKNOWN)
    error = f"± {format_number(row['stderr'])}" if row["stderr"] is not None else ""
    return Cell(format_number(row["value"]), error)


def _gain_cell(row: ReportRow | None) -> Cell:
    gain = row["gain"] if row else None
    if row is None or gain is None or gain["low"] is None:
        return Cell(UNKNOWN)
    is_higher, is_lower = gain["low"] > 0, gain["high"] < 0
    if row["higher_is_better"] is False:
        is_higher, is_lower = is_lower, is_higher
    tone = "up" if is_higher else "down" if is_lower else ""
    return Cell(format_signed(gain["mean"]), format_interval(gain, format_signed), tone)


def build_retention(report: ReportRow) -> ReportTable:
    columns = ("capability", "may fall by", "change", "verdict")
    rows = [_retention_row(row) for row in report["retention"]]
    note = (
        "What evaluate.retention guards. Lost: the whole interval is below the limit."
        " Kept: none of it is."
    )
    return ReportTable("Retention", note, columns, rows)


def _retention_row(row: ReportRow) -> list[Cell]:
    change, tone = row["change"], {"kept": "up", "lost": "down"}.get(row["state"], "")
    change_cell = Cell(UNKNOWN)
    if change:
        ends = format_interval(change, format_signed)
        change_cell = Cell(format_signed(change["mean"]), ends)
    return [
        Cell(row["name"]),
        Cell(format_number(row["limit"])),
        change_cell,
        Cell(STATES[row["state"]], "", tone),
    ]
