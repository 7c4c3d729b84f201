"""report.html: one offline file, light and dark, desk and phone, from the report's own files."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

import polars as pl

from pipeline.report.analysis.verdict import write_headline
from pipeline.report.formatting import ReportRow, format_level
from pipeline.report.render import header
from pipeline.report.render.answers import render_answers
from pipeline.report.render.figures import draw_figures
from pipeline.report.render.reliability import render_reliability
from pipeline.report.render.svg import Figure
from pipeline.report.render.table import Cell, ReportTable, anchor_id, find_text_columns
from pipeline.report.render.tables import build_tables

HERE = Path(__file__).parent
TALL_HEIGHT = 420  # a taller figure takes the place of two
BADGES = {"yes": "Better", "no": "Not better", "unclear": "Unclear"}


def render_page(
    report: ReportRow, answers: pl.DataFrame, verdicts: pl.DataFrame | None = None
) -> str:
    """`answers` and `verdicts` as in their tables; without verdicts no contest can be browsed."""
    better = report["verdict"]["better"]
    models, *others = (render_table(table) for table in build_tables(report))
    sections = [
        _render_unstable_control(report),
        _render_missing(report),
        models,
        header.render_changes(report),
        render_figures(draw_figures(report)),
        render_reliability(report),
        render_answers(report, answers, verdicts),
        *others,
    ]
    why = report["verdict"]["why"].replace(" %", "\u00a0%")
    return render_document(
        (better, BADGES[better], write_headline(report), why),
        sections,
        below=f"{header.render_links(report)}{header.render_tiles(report)}",
        footer=_render_footer(report),
        script=(HERE / "answers.js").read_text(),
    )


def render_document(
    verdict: tuple[str, str, str, str],
    sections: list[str],
    below: str = "",
    footer: str = "",
    script: str = "",
) -> str:
    """A page under its verdict (kind, badge, headline, lead). It loads nothing."""
    kind, badge, title, lead = map(escape, verdict)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return Template((HERE / "page.html").read_text()).substitute(
        title=title,
        style=(HERE / "page.css").read_text(),
        allowed=f"'sha256-{digest}'" if script else "'none'",
        better=kind,
        badge=badge,
        lead=lead,
        below=below,
        sections="\n".join(section for section in sections if section),
        footer=footer,
        script=f"<script>{script}</script>" if script else "",
    )


def render_figures(figures: list[Figure]) -> str:
    if not figures:
        return ""
    body = "\n".join(render_figure(figure) for figure in figures)
    return f'<section id="figures"><h2>Figures</h2><div class="figures">{body}</div></section>'


def _render_unstable_control(report: ReportRow) -> str:
    control = report["control"]
    if control is None or control["stable"] is not False:
        return ""
    text = escape(control["why"])
    return f'<section class="missing"><h2>A/A control</h2><p>{text}</p></section>'


def _render_missing(report: ReportRow) -> str:
    if not report["missing"]:
        return ""
    items = "".join(
        f"<li><b>{escape(row['model'])}</b>: {escape(row['what'])}</li>"
        for row in report["missing"]
    )
    return f'<section class="missing"><h2>What is missing</h2><ul>{items}</ul></section>'


def render_table(table: ReportTable) -> str:
    text_columns = find_text_columns([[cell.text for cell in row] for row in table.rows])
    rows = "\n".join(_render_row(table, row, text_columns) for row in table.rows)
    head = _render_head(table.columns, text_columns)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section><h2 id="{anchor_id(table.title)}">{escape(table.title)}</h2>{note}'
        '<div class="sheet cards" tabindex="0">'
        f"<table>{head}<tbody>{rows}</tbody></table></div></section>"
    )


def _render_head(columns: Sequence[str], text_columns: Sequence[bool]) -> str:
    cells = (
        f'<th scope="col"{_align_attribute(is_text)}>{escape(name)}</th>'
        for name, is_text in zip(columns, text_columns, strict=True)
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _align_attribute(is_text: bool) -> str:
    return " class=words" if is_text else ""


def _render_row(table: ReportTable, row: Sequence[Cell], text_columns: Sequence[bool]) -> str:
    is_chosen = table.chosen is not None and row[0].text == table.chosen
    chip = '<span class="chip">chosen</span>' if is_chosen else ""
    cells = "".join(map(_render_cell, row[1:], table.columns[1:], text_columns[1:]))
    name = f"{escape(row[0].text)}{chip}{_render_detail(row[0])}"
    return f'<tr{" class=chosen" if is_chosen else ""}><th scope="row">{name}</th>{cells}</tr>'


def _render_cell(cell: Cell, column: str, is_text: bool) -> str:
    tone = f' class="{cell.tone}"' if cell.tone else ""
    body = f"<span><span{tone}>{escape(cell.text)}</span>{_render_detail(cell)}</span>"
    return f'<td{_align_attribute(is_text)} data-label="{escape(column)}">{body}</td>'


def render_figure(figure: Figure) -> str:
    text_columns = find_text_columns(figure.rows)
    rows = "".join(
        f"<tr>{''.join(map(_render_figure_cell, row, text_columns))}</tr>" for row in figure.rows
    )
    head = _render_head(figure.columns, text_columns)
    tall = " class=tall" if figure.height > TALL_HEIGHT else ""
    return (
        f'<figure{tall} id="{anchor_id(figure.title, "figure")}">'
        f"<figcaption><b>{escape(figure.title)}</b>"
        f"<span>{escape(figure.caption)}</span></figcaption>{figure.drawing}"
        '<details><summary>Numbers</summary><div class="scroll" tabindex="0">'
        f"<table>{head}<tbody>{rows}</tbody></table></div></details></figure>"
    )


def _render_detail(cell: Cell) -> str:
    return f" <small class=soft>{escape(cell.detail)}</small>" if cell.detail else ""


def _render_figure_cell(text: str, is_text: bool) -> str:
    return f"<td{_align_attribute(is_text)}>{escape(text)}</td>"


def _render_footer(report: ReportRow) -> str:
    terms = _list_terms(report["evaluation"])
    body = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms)
    return f"<dl>{body}</dl>"


def _list_terms(evaluation: ReportRow) -> list[tuple[str, str]]:
    return [
        (
            "Score",
            f"The mean of {evaluation['scorer']} over prompts; several answers to one prompt are"
            " averaged first. Failed scores are left out and counted, never 0. control is sft"
            " sampled again with other seeds.",
        ),
        (
            "Interval",
            f"{format_level(evaluation['level'])} over prompts, at each end the farther of"
            " Student's t and the bootstrap-t. Δ is the paired difference: the same prompts"
            " answered by both.",
        ),
        (
            "p",
            "Of a difference by a sign-flip test, of a contest by the sign test; corrected by"
            " Holm's method within a scorer's models, a judge's contests, a column's slices, and"
            " the control's tests. The chosen model's difference by"
            f" {evaluation['scorer']} is the one test planned beforehand and is not corrected."
            " report.json has p with and without correction.",
        ),
        (
            "KL to sft",
            "In nats per answer, on the model's own samples at temperature 1 without truncation.",
        ),
        (
            "Style",
            "Truncated: answers that reached the token limit. Repetition: the share of an answer's"
            " word trigrams that occurred before in it. Tokens exclude reasoning. Other language"
            " than the prompt's, among texts of 40 characters or more.",
        ),
        (
            "Other files",
            "report.json has all figures, answers.parquet all answers,"
            " verdicts.parquet all contests.",
        ),
    ]
