"""Panels as a table: what several judges say together, how far they agree, and without each one."""

from collections.abc import Iterator

from pipeline.report.formatting import (
    UNKNOWN,
    ReportRow,
    format_count,
    format_interval,
    format_number,
    format_share,
    format_signed,
)
from pipeline.report.render.table import Cell, ReportTable, join_details

TONES = {"better": "up", "worse": "down"}


def build_panels(report: ReportRow) -> ReportTable:
    columns = ("contest", "panel", "without", "result", "is", "κ", "κ with the others", "prompts")
    note = (
        "Several judges or scorers as one. The result is the win rate of judges, and the difference"
        " in the mean score of scorers. κ is Fleiss’ among the judges, on wins, ties and"
        " losses: 0 is chance, 1 is full agreement. A row below each panel leaves one judge out; κ"
        " with the others is the mean of Cohen’s κ between that judge and each other one. Do"
        " not trust a result that hangs on one judge."
    )
    rows = [row for panel in report.get("panels", ()) for row in _list_rows(panel)]
    return ReportTable("Panels", note, columns, rows)


def _list_rows(panel: ReportRow) -> Iterator[list[Cell]]:
    contest = Cell(f"{panel['a']} against {panel['b']}")
    members = f"{panel['combine']} of {', '.join(panel['judges'])}"
    yield [
        contest,
        Cell(panel["panel"], members),
        Cell(UNKNOWN),
        *_result_cells(panel, panel),
        Cell(format_number(panel["kappa"])),
        Cell(UNKNOWN),
        Cell(format_count(panel["prompts"])),
    ]
    for left in panel["without"]:
        yield [
            contest,
            Cell(panel["panel"]),
            Cell(left["judge"]),
            *_result_cells(panel, left),
            Cell(format_number(left["kappa"])),
            Cell(format_number(left["with_others"])),
            Cell(UNKNOWN),
        ]


def _result_cells(panel: ReportRow, row: ReportRow) -> list[Cell]:
    formatted = format_share if panel["even"] else format_signed
    changed = row["verdict"] and panel["verdict"] and row["verdict"] != panel["verdict"]
    return [
        Cell(
            formatted(row["mean"]),
            join_details(format_interval(row, formatted)),
            TONES.get(row["verdict"] or "", ""),
        ),
        Cell(row["verdict"] or UNKNOWN, "another verdict than the panel’s" if changed else ""),
    ]
