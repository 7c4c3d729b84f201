"""report.html: one file for offline, light and dark, desk and phone; made from the report's own files alone."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

import polars as pl

from pipeline.report.analysis.verdict import headline
from pipeline.report.formatting import Row, level_text
from pipeline.report.render import header
from pipeline.report.render.answers import answers_html
from pipeline.report.render.figures import all_figures
from pipeline.report.render.reliability import trust_html
from pipeline.report.render.svg import Figure
from pipeline.report.render.table import Cell, Sheet, anchor, worded
from pipeline.report.render.tables import all_sheets

HERE = Path(__file__).parent
TALL = 420  # from here on a figure stands beside two others
BADGES = {"yes": "Better", "no": "Not better", "unclear": "Unclear"}


def page(report: Row, answers: pl.DataFrame, verdicts: pl.DataFrame | None = None) -> str:
    """`answers` and `verdicts` as their tables have them; without verdicts no contest can be looked through."""
    better = report["verdict"]["better"]
    figures = figures_html(all_figures(report))
    models, *others = (section_html(sheet) for sheet in all_sheets(report))
    tail = [trust_html(report), answers_html(report, answers, verdicts), *others]
    sections = [
        _unstable(report),
        _missing(report),
        models,
        header.changed_html(report),
        figures,
        *tail,
    ]
    why = report["verdict"]["why"].replace(" %", "\u00a0%")
    return document(
        (better, BADGES[better], headline(report), why),
        sections,
        below=f"{header.links(report)}{header.tiles(report)}",
        footer=_footer(report),
        script=(HERE / "answers.js").read_text(),
    )


def document(
    verdict: tuple[str, str, str, str],
    sections: list[str],
    below: str = "",
    footer: str = "",
    script: str = "",
) -> str:
    """A whole page under its verdict (kind, badge, headline, lead). It runs this one script, and asks for nothing."""
    kind, badge, title, lead = map(escape, verdict)
    style = (HERE / "page.css").read_text()
    allowed = (
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    )
    return Template((HERE / "page.html").read_text()).substitute(
        title=title,
        style=style,
        allowed=allowed,
        better=kind,
        badge=badge,
        lead=lead,
        below=below,
        sections="\n".join(section for section in sections if section),
        footer=footer,
        script=f"<script>{script}</script>" if script else "",
    )


def figures_html(figures: list[Figure]) -> str:
    drawn = "\n".join(figure_html(figure) for figure in figures)
    return (
        f'<section id="figures"><h2>Figures</h2><div class="figures">{drawn}</div></section>'
        if figures
        else ""
    )


def _unstable(report: Row) -> str:
    if report["control"] is None or report["control"]["stable"] is not False:
        return ""
    return f'<section class="missing"><h2>A/A control</h2><p>{escape(report["control"]["why"])}</p></section>'


def _missing(report: Row) -> str:
    if not report["missing"]:
        return ""
    items = "".join(
        f"<li><b>{escape(row['model'])}</b>: {escape(row['what'])}</li>"
        for row in report["missing"]
    )
    return f'<section class="missing"><h2>What is missing</h2><ul>{items}</ul></section>'


def section_html(sheet: Sheet) -> str:
    words = worded([[cell.text for cell in row] for row in sheet.rows])
    body = "\n".join(_row(sheet, row, words) for row in sheet.rows)
    table = f"<table>{_head(sheet.columns, words)}<tbody>{body}</tbody></table>"
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    title = f'<h2 id="{anchor(sheet.title)}">{escape(sheet.title)}</h2>'
    return f'<section>{title}{note}<div class="sheet cards" tabindex="0">{table}</div></section>'


def _head(columns: Sequence[str], words: Sequence[bool]) -> str:
    cells = (
        f'<th scope="col"{_side(of)}>{escape(name)}</th>'
        for name, of in zip(columns, words, strict=True)
    )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _side(words: bool) -> str:
    return " class=words" if words else ""


def _row(sheet: Sheet, row: Sequence[Cell], words: Sequence[bool]) -> str:
    is_chosen = sheet.chosen is not None and row[0].text == sheet.chosen
    chip = '<span class="chip">chosen</span>' if is_chosen else ""
    cells = "".join(map(_cell, row[1:], sheet.columns[1:], words[1:]))
    named = f"{escape(row[0].text)}{chip}{_detail(row[0])}"
    return f'<tr{" class=chosen" if is_chosen else ""}><th scope="row">{named}</th>{cells}</tr>'


def _cell(cell: Cell, column: str, words: bool) -> str:
    tone = f' class="{cell.tone}"' if cell.tone else ""
    told = f"<span><span{tone}>{escape(cell.text)}</span>{_detail(cell)}</span>"
    return f'<td{_side(words)} data-label="{escape(column)}">{told}</td>'


def figure_html(figure: Figure) -> str:
    words = worded(figure.rows)
    body = "".join(f"<tr>{''.join(map(_figure_cell, row, words))}</tr>" for row in figure.rows)
    table = f"<table>{_head(figure.columns, words)}<tbody>{body}</tbody></table>"
    caption = f"<figcaption><b>{escape(figure.title)}</b><span>{escape(figure.caption)}</span></figcaption>"
    tall = " class=tall" if figure.height > TALL else ""
    return (
        f'<figure{tall} id="{anchor(figure.title, "figure")}">{caption}{figure.drawing}'
        f'<details><summary>Numbers</summary><div class="scroll" tabindex="0">{table}</div></details></figure>'
    )


def _detail(cell: Cell) -> str:
    return f" <small class=soft>{escape(cell.detail)}</small>" if cell.detail else ""


def _figure_cell(text: str, words: bool) -> str:
    return f"<td{_side(words)}>{escape(text)}</td>"


def _footer(report: Row) -> str:
    body = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _terms(report["exam"])
    )
    return f"<dl>{body}</dl>"


def _terms(exam: Row) -> list[tuple[str, str]]:
    return [
        (
            "Score",
            f"The mean of {exam['scorer']} over prompts; several answers to one prompt are averaged first. "
            "Failed scores are left out and counted, never 0. control is sft drawn again in other seeds.",
        ),
        (
            "Interval",
            f"{level_text(exam['level'])} over prompts, at each end the farther of Student's t and the bootstrap of t. "
            "Δ is the paired difference: the same prompts answered by both.",
        ),
        (
            "p",
            "Of a difference by random signs, of a contest by the sign test; corrected by Holm's method within a "
            "scorer's models, a judge's contests, a column's slices, and the control's tests. report.json has both.",
        ),
        (
            "KL to sft",
            "In nats per answer, on the model's own samples at temperature 1 without truncation.",
        ),
        (
            "How they write",
            "Truncated: answers that met the token limit. Repetition: the share of an answer's word trigrams that it "
            "has used before. Tokens are without reasoning. Other language than the prompt's, among texts of 40 "
            "characters or more.",
        ),
        (
            "Files beside this one",
            "report.json has all figures, answers.parquet all answers, verdicts.parquet all contests.",
        ),
    ]
