"""report.md: the verdict and the tables in Markdown, to be pasted into a model card."""

from collections.abc import Mapping
from typing import Any

from pipeline.report import sheets
from pipeline.report.benchmark_sheets import more_sheets
from pipeline.report.sheets import Cell, Sheet
from pipeline.report.verdict import headline


def card(report: Mapping[str, Any]) -> str:
    parts = ["# Evaluation", f"**{_plain(headline(report))}** {_plain(report['verdict']['why'])}"]
    if report["control"] and report["control"]["stable"] is False:
        parts.append(f"**A/A control:** {_plain(report['control']['why'])}")
    if report["missing"]:
        lines = "\n".join(f"- {_plain(row['model'])}: {_plain(row['what'])}" for row in report["missing"])
        parts.append(f"Missing:\n\n{lines}")
    tables = [*sheets.all_sheets(report), *more_sheets(report), sheets.cost(report)]
    parts += [_section(sheet) for sheet in tables if sheet.rows]
    return "\n\n".join(parts) + "\n"


def _section(sheet: Sheet) -> str:
    rule = ["---", *("---:" for _ in sheet.columns[1:])]
    lines = [[_plain(column) for column in sheet.columns], rule, *([_cell(cell) for cell in row] for row in sheet.rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {sheet.title}\n\n{_plain(sheet.note)}\n\n{table}"


def _cell(cell: Cell) -> str:
    return _plain(f"{cell.text} ({cell.detail})" if cell.detail else cell.text)


def _plain(text: str) -> str:
    """Names come from configs and models: none of them may break the table or become markup."""
    for mark in ("\\", "|", "`", "*", "_", "<", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
