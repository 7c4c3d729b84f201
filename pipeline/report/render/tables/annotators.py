"""How far judges and scorers agree with annotators on the same contests, as a table."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.formatting import (
    ReportRow,
    format_count,
    format_interval,
    format_number,
    format_share,
)
from pipeline.report.render.table import Cell, ReportTable

EACH_OTHER = "each other"


def build_agreement(report: ReportRow) -> ReportTable:
    columns = (
        "contest",
        "annotators",
        "prompts",
        "against",
        "agreement",
        "exact",
        "κ",
        "prefers longer",
        "without verdict",
    )
    note = (
        "Agreement is measured where annotators decided: right is 1, a tie half, wrong 0. Exact"
        " agreement and κ count ties too. Do not let a judge decide that agrees with annotators"
        " less than they agree with each other."
    )
    rows = [
        _agreement_row(contest, name, row)
        for contest in report["annotators"]
        for name, row in _list_judges(contest)
    ]
    return ReportTable("Judges and annotators", note, columns, rows)


def _list_judges(contest: ReportRow) -> list[tuple[str, Mapping[str, Any]]]:
    own = contest["among_themselves"]
    return [*contest["judges"].items(), *([(EACH_OTHER, own)] if own else [])]


def _agreement_row(contest: ReportRow, name: str, row: Mapping[str, Any]) -> list[Cell]:
    annotators = f"{contest['annotators']} annotators" if contest["annotators"] > 1 else ""
    question_set = f"on {contest['on']}" if contest["on"] else ""
    return [
        Cell(f"{contest['a']} against {contest['b']}", question_set),
        Cell(contest["name"], annotators),
        Cell(format_count(contest["prompts"])),
        Cell(name),
        Cell(format_number(row["agreement"]["mean"]), format_interval(row["agreement"])),
        Cell(format_number(row["exact"])),
        Cell(format_number(row["kappa"])),
        Cell(format_share(row["prefers_longer"])),
        Cell(format_count(row["failed"])),
    ]
