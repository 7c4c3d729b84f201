"""The comparison as a page and as Markdown, made from its report and the answers alone."""

from html import escape

import polars as pl

from pipeline.report.analysis.verdict import detectable, is_flat
from pipeline.report.formatting import (
    NO_SPREAD,
    UNKNOWN,
    Row,
    count,
    interval,
    level_text,
    number,
    p_value,
)
from pipeline.report.render.answers import answers_html
from pipeline.report.render.markdown import section
from pipeline.report.render.page import BADGES, HERE, document, section_html
from pipeline.report.render.table import UNMARKED, Cell, Sheet, detail, gap_of, row_of
from pipeline.report.render.tables import contests, models


def page(report: Row, answers: pl.DataFrame, verdicts: pl.DataFrame) -> str:
    told, exam = report["verdict"], {"chosen": None, "scorer": report["ground"]["chief"]}
    sections = [
        _said(report),
        *map(section_html, sheets(report)),
        answers_html({**report, "exam": exam}, answers, verdicts),
    ]
    head = (
        told["better"],
        BADGES[told["better"]],
        told["headline"],
        told["why"].replace(" %", "\u00a0%"),
    )
    return document(
        head, sections, footer=_footer(report), script=(HERE / "answers.js").read_text()
    )


def card(report: Row) -> str:
    told = report["verdict"]
    lines = [f"- {text}" for text in _notes(report)]
    parts = [
        f"# Comparison\n\n**{told['headline']}** {told['why']}",
        "\n".join(lines),
        *map(section, sheets(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sheets(report: Row) -> list[Sheet]:
    made = (
        _models(report),
        _kinds(report),
        contests.duels(report),
        models.habits({**report, "exam": NO_ONE}),
    )
    return [sheet for sheet in made if sheet.rows]


NO_ONE = {"chosen": None}


def _models(report: Row) -> Sheet:
    ground, first = report["ground"], report["models"][0]["name"]
    chief = ground["chief"]
    note = f"{count(ground['asked'])} common prompts; with each mean its {level_text(ground['level'])}. {_power(report)}"
    columns = (
        "model",
        chief or "no common scorer",
        f"Δ over {first}",
        "p",
        "tokens",
        "KL to its own sft",
    )
    return Sheet(
        "Models", note, columns, [_model(report, model, chief) for model in report["models"]]
    )


def _power(report: Row) -> str:
    """The smallest difference that each of them could show."""
    gaps = [row for row in report["differences"] if row["scorer"] == report["ground"]["chief"]]
    asked = report["ground"]["asked"]
    on = {row["model"]: "" if row["n"] == asked else f", on {row['n']} with scores" for row in gaps}
    known = [
        f"{detectable(row)} ({row['model']}{on[row['model']]})" for row in gaps if not is_flat(row)
    ]
    if not known:
        return NO_SPREAD if any(row["n"] > 1 for row in gaps) else ""
    return f"So many can detect a difference of {', '.join(known)} in four cases of five."


def _model(report: Row, model: Row, chief: str | None) -> list[Cell]:
    mark, kl, tokens = model["metrics"].get(chief, UNMARKED), model["kl"], model["tokens"]
    gap = row_of(report, model["name"], chief or "")
    lost = f"{count(mark['failed'])} without score" if mark["failed"] else ""
    return [
        Cell(model["name"]),
        Cell(number(mark["mean"]), detail(interval(mark), lost)),
        gap_of(report, model["name"], chief or ""),
        Cell(p_value(gap["p_holm"]) if gap else UNKNOWN),
        Cell(number(tokens["mean"], 1), detail(interval(tokens, lambda value: number(value, 1)))),
        Cell(number(kl["mean"], 2), detail(interval(kl, lambda value: number(value, 2)))),
    ]


def _kinds(report: Row) -> Sheet:
    first, chief = report["models"][0]["name"], report["ground"]["chief"]
    others = [model["name"] for model in report["models"][1:]]
    names = dict.fromkeys(
        name for model in report["models"] for name in model["metrics"] if name != chief
    )
    columns = (
        "scorer",
        *(model["name"] for model in report["models"]),
        *(f"Δ {name}" for name in others),
    )
    rows = [
        [
            Cell(name),
            *(
                Cell(number(model["metrics"].get(name, UNMARKED)["mean"]))
                for model in report["models"]
            ),
            *(gap_of(report, other, name) for other in others),
        ]
        for name in names
    ]
    return Sheet(
        "Scorer by scorer", f"Every common scorer and its kinds; Δ is over {first}.", columns, rows
    )


def _notes(report: Row) -> list[str]:
    return [
        *report["ground"]["apart"],
        *(f"{row['model']}: {row['what']}" for row in report["missing"]),
    ]


def _said(report: Row) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in _notes(report))
    return (
        f'<section class="missing"><h2>What is not compared</h2><ul>{items}</ul></section>'
        if items
        else ""
    )


def _footer(report: Row) -> str:
    rows = "".join(
        f"<dt>{escape(row['name'])}</dt><dd>{escape(row['row'])} · {escape(row['model'])}</dd>"
        for row in report["compared"]
    )
    return f"<dl>{rows}</dl>"
