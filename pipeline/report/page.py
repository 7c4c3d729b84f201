"""report.html: one file for offline, light and dark, desk and phone; made from report.json and the answers alone."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import polars as pl

from pipeline.report import sheets
from pipeline.report.benchmark_sheets import more_sheets
from pipeline.report.examples import examples_html
from pipeline.report.figures import of_models
from pipeline.report.process import of_process
from pipeline.report.sheets import Cell, Sheet
from pipeline.report.svg import Figure
from pipeline.report.verdict import headline
from pipeline.report.wording import count, interval, level_text, number, share, signed

Row = Mapping[str, Any]
HERE = Path(__file__).parent
BADGES = {"yes": "Better", "no": "Not better", "unclear": "Unclear"}


def page(report: Row, answers: pl.DataFrame) -> str:
    figures = "\n".join(figure_html(figure) for figure in (*of_models(report), *of_process(report)))
    sections = [
        _unstable(report),
        _missing(report),
        *(section_html(sheet) for sheet in (*sheets.all_sheets(report), *more_sheets(report))),
        f'<section><h2>Figures</h2><div class="figures">{figures}</div></section>' if figures else "",
        examples_html(answers, report["exam"]["chosen"]),
    ]
    return Template((HERE / "page.html").read_text()).substitute(
        title=escape(headline(report)),
        style=(HERE / "page.css").read_text(),
        better=report["verdict"]["better"],
        badge=BADGES[report["verdict"]["better"]],
        headline=escape(headline(report)),
        lead=escape(report["verdict"]["why"].replace(" %", "\u00a0%")),
        tiles=_tiles(report),
        sections="\n".join(section for section in sections if section),
        footer=_footer(report),
    )


def _tiles(report: Row) -> str:
    """The four figures that one asks for first: how much better, how often, how long, how far."""
    models, exam = {model["name"]: model for model in report["models"]}, report["exam"]
    chosen, sft = models.get(exam["chosen"]), models.get("sft")
    if not chosen or not sft or chosen is sft:
        return ""
    gap = next(
        (d for d in report["differences"] if (d["model"], d["scorer"]) == (exam["chosen"], exam["scorer"])), None
    )
    duel = next((d for d in report["duels"] if (d["a"], d["b"]) == (exam["chosen"], "sft")), None)
    scores = [number(model["metrics"].get(exam["scorer"], sheets.UNMARKED)["mean"]) for model in (sft, chosen)]
    tiles = [
        (f"Score by {exam['scorer']}", signed(gap["mean"] if gap else None), f"from {scores[0]} to {scores[1]}"),
        ("Win rate against sft", share(duel["win_rate"] if duel else None), _counts(duel)),
        ("Tokens per answer", number(chosen["tokens"]["mean"], 1), f"sft {number(sft['tokens']['mean'], 1)}"),
        ("KL to sft, nats", number(chosen["kl"]["mean"], 2), interval(chosen["kl"], lambda value: number(value, 2))),
    ]
    body = "".join(
        f"<div><dt>{escape(a)}</dt><dd><b>{escape(b)}</b><small>{escape(c)}</small></dd></div>" for a, b, c in tiles
    )
    return f'<dl class="tiles">{body}</dl>'


def _counts(duel: Row | None) -> str:
    return f"{count(duel['wins'])} wins, {count(duel['ties'])} ties, {count(duel['losses'])} losses" if duel else ""


def _unstable(report: Row) -> str:
    if report["control"] is None or report["control"]["stable"] is not False:
        return ""
    return f'<section class="missing"><h2>A/A control</h2><p>{escape(report["control"]["why"])}</p></section>'


def _missing(report: Row) -> str:
    if not report["missing"]:
        return ""
    items = "".join(f"<li><b>{escape(row['model'])}</b>: {escape(row['what'])}</li>" for row in report["missing"])
    return f'<section class="missing"><h2>What is missing</h2><ul>{items}</ul></section>'


def section_html(sheet: Sheet) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in sheet.columns)
    body = "\n".join(_row(sheet, row) for row in sheet.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return f'<section><h2>{escape(sheet.title)}</h2>{note}<div class="sheet cards" tabindex="0">{table}</div></section>'


def _row(sheet: Sheet, row: list[Cell] | Any) -> str:
    is_chosen = sheet.chosen is not None and row[0].text == sheet.chosen
    chip = '<span class="chip">chosen</span>' if is_chosen else ""
    cells = "".join(_cell(cell, column) for cell, column in zip(row[1:], sheet.columns[1:], strict=True))
    return f'<tr{" class=chosen" if is_chosen else ""}><th scope="row">{escape(row[0].text)}{chip}</th>{cells}</tr>'


def _cell(cell: Cell, column: str) -> str:
    tone = f' class="{cell.tone}"' if cell.tone else ""
    detail = f" <small class=soft>{escape(cell.detail)}</small>" if cell.detail else ""
    return f'<td data-label="{escape(column)}"><span><span{tone}>{escape(cell.text)}</span>{detail}</span></td>'


def figure_html(figure: Figure) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in figure.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in figure.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f"<figure><figcaption><b>{escape(figure.title)}</b><span>{escape(figure.caption)}</span></figcaption>{figure.drawing}"
        f'<details><summary>Numbers</summary><div class="scroll" tabindex="0">{table}</div></details></figure>'
    )


def _footer(report: Row) -> str:
    body = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in _terms(report["exam"]))
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
            f"{level_text(exam['level'])} by bootstrap over prompts (BCa). "
            "Δ is the paired difference: the same prompts answered by both.",
        ),
        (
            "p",
            "Of a difference by random signs, of a contest by the sign test; corrected by Holm's method within a "
            "scorer's models, a judge's contests, a column's slices, and the control's tests. report.json has both.",
        ),
        ("KL to sft", "In nats per answer, on the model's own samples at temperature 1 without truncation."),
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
