"""How far judges and scorers agree with people on the same contests, as a table."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.formatting import Row, count, interval, number, share
from pipeline.report.render.table import Cell, Sheet

PEOPLE = "each other"


def people(report: Row) -> Sheet:
    columns = (
        "contest",
        "people",
        "prompts",
        "against",
        "agreement",
        "exact",
        "κ",
        "prefers longer",
        "without verdict",
    )
    note = (
        "Agreement is asked where people decided: right is 1, a tie half, wrong 0. Exact agreement and κ know ties as "
        "well. A judge that agrees with people less than they with each other should not decide."
    )
    rows = [_row(told, name, row) for told in report["people"] for name, row in _against(told)]
    return Sheet("Judges and people", note, columns, rows)


def _against(told: Row) -> list[tuple[str, Mapping[str, Any]]]:
    own = [(PEOPLE, told["among_themselves"])] if told["among_themselves"] else []
    return [*told["judges"].items(), *own]


def _row(told: Row, name: str, row: Mapping[str, Any]) -> list[Cell]:
    annotators = f"{told['annotators']} annotators" if told["annotators"] > 1 else ""
    return [
        Cell(f"{told['a']} against {told['b']}", f"on {told['on']}" if told["on"] else ""),
        Cell(told["people"], annotators),
        Cell(count(told["prompts"])),
        Cell(name),
        Cell(number(row["agreement"]["mean"]), interval(row["agreement"])),
        Cell(number(row["exact"])),
        Cell(number(row["kappa"])),
        Cell(share(row["prefers_longer"])),
        Cell(count(row["failed"])),
    ]
