"""report.md: the verdict and the tables in Markdown, to be pasted into a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.analysis import changes
from pipeline.report.analysis.verdict import headline
from pipeline.report.render.table import Cell, Sheet, worded
from pipeline.report.render.tables import all_sheets, origins


def card(report: Mapping[str, Any]) -> str:
    parts = ["# Evaluation", f"**{_plain(headline(report))}** {_plain(report['verdict']['why'])}"]
    if report["control"] and report["control"]["stable"] is False:
        parts.append(f"**A/A control:** {_plain(report['control']['why'])}")
    if report["missing"]:
        lines = "\n".join(
            f"- {_plain(row['model'])}: {_plain(row['what'])}" for row in report["missing"]
        )
        parts.append(f"Missing:\n\n{lines}")
    told = changes.told(report)
    parts += [_changes("What changed", [each for each in told if each.changed])]
    parts += [
        _changes("What did not, as far as can be told", [each for each in told if not each.changed])
    ]
    tables = [*all_sheets(report), origins.cost(report)]
    parts += [section(sheet) for sheet in tables if sheet.rows]
    return "\n\n".join(part for part in parts if part) + "\n"


def _changes(title: str, found: Sequence[changes.Change]) -> str:
    lines = [f"- {_plain(each.name)}: {_plain(each.figures)}" for each in found]
    return "\n".join([f"## {title}\n", *lines]) if lines else ""


def section(sheet: Sheet) -> str:
    words = worded([[cell.text for cell in row] for row in sheet.rows])
    rule = ["---", *("---" if of else "---:" for of in words[1:])]
    lines = [
        [_plain(column) for column in sheet.columns],
        rule,
        *([_cell(cell) for cell in row] for row in sheet.rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {sheet.title}\n\n{_plain(sheet.note)}\n\n{table}"


def _cell(cell: Cell) -> str:
    return _plain(f"{cell.text} ({cell.detail})" if cell.detail else cell.text)


def _plain(text: str) -> str:
    """Names come from configs and models: none of them may break the table or become markup."""
    for mark in ("\\", "|", "`", "*", "_", "<", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
