"""report.md: the verdict and the tables in Markdown, to be pasted into a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.analysis import changes
from pipeline.report.analysis.verdict import write_headline
from pipeline.report.render.header import list_settings
from pipeline.report.render.reliability import TITLE, explain_reliability
from pipeline.report.render.table import Cell, ReportTable
from pipeline.report.render.tables import build_tables, origins

MADE_BY_STROP = "Made by Strop."


def render_markdown(report: Mapping[str, Any]) -> str:
    headline, why = write_headline(report), report["verdict"]["why"]
    parts = ["# Evaluation", f"**{_escape_markdown(headline)}** {_escape_markdown(why)}"]
    if settings := list_settings(report):
        parts.append("\n".join(f"- {name}: {_escape_markdown(value)}" for name, value in settings))
        parts.append(f"    {report['setup']['command']}")
    if report["control"] and report["control"]["stable"] is False:
        parts.append(f"**A/A control:** {_escape_markdown(report['control']['why'])}")
    if report["missing"]:
        lines = [
            f"- {_escape_markdown(row['model'])}: {_escape_markdown(row['what'])}"
            for row in report["missing"]
        ]
        parts.append("\n".join(["Missing:\n", *lines]))
    if groups := changes.group_changes(report):
        parts += [_render_changes(title, listed) for title, listed in groups.items()]
        parts.append(_escape_markdown(changes.write_note(report)))
    tables = [*build_tables(report), origins.build_cost(report)]
    parts += [render_markdown_table(table) for table in tables if table.rows]
    parts.append(_render_reliability(report))
    parts.append(MADE_BY_STROP)
    return "\n\n".join(part for part in parts if part) + "\n"


def _render_reliability(report: Mapping[str, Any]) -> str:
    checks = explain_reliability(report)
    lines = [f"- {name}: {_escape_markdown(text)}" for name, text in checks]
    return "\n".join([f"## {TITLE}\n", *lines])


def _render_changes(title: str, listed: Sequence[changes.Change]) -> str:
    lines = [
        f"- {_escape_markdown(each.name)}: {_escape_markdown(each.figures)}" for each in listed
    ]
    return "\n".join([f"## {title}\n", *(lines or [changes.EMPTY_LISTS[title]])])


def render_markdown_table(table: ReportTable) -> str:
    lines = [
        [_escape_markdown(column) for column in table.columns],
        ["---", *("---" if is_text else "---:" for is_text in table.text_columns[1:])],
        *([_format_cell(cell) for cell in row] for row in table.rows),
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {table.title}\n\n{_escape_markdown(table.note)}\n\n{rows}"


def _format_cell(cell: Cell) -> str:
    return _escape_markdown(f"{cell.text} ({cell.detail})" if cell.detail else cell.text)


def _escape_markdown(text: str) -> str:
    """Names come from configs and models: none of them may break the table or become markup."""
    for character in ("\\", "|", "`", "*", "_", "<", "[", "]"):
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
