"""The table of published figures next to this run's."""

from pipeline.report.analysis.expected import STATES
from pipeline.report.formatting import UNKNOWN, ReportRow, format_number
from pipeline.report.render.table import Cell, ReportTable


def build_expected(report: ReportRow) -> ReportTable:
    columns = ("metric", "model", "expected", "got", "tolerance", "verdict", "source")
    rows = [_expected_row(row) for row in report["expected"]]
    note = (
        "Published figures, as expect gives them, next to this run's. ±: half the width of its"
        " interval. Perhaps by chance: the interval reaches into the tolerance."
    )
    return ReportTable("Expected", note, columns, rows)


def _expected_row(row: ReportRow) -> list[Cell]:
    margin = f"± {format_number(row['margin'])}" if row["margin"] is not None else ""
    tone = {"within": "up", "below": "down"}.get(row["state"], "")
    return [
        Cell(row["metric"]),
        Cell(row["model"] or UNKNOWN),
        Cell(format_number(row["published"])),
        Cell(format_number(row["got"]), margin),
        Cell(format_number(row["tolerance"])),
        Cell(STATES[row["state"]], "", tone),
        Cell(row["source"]),
    ]
