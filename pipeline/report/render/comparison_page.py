"""The comparison as a page and as Markdown, from its report and the answers alone."""

import polars as pl

from pipeline.report.analysis.verdict import format_detectable, is_flat
from pipeline.report.formatting import (
    BADGES,
    NO_SPREAD,
    UNKNOWN,
    ReportRow,
    format_count,
    format_interval,
    format_level,
    format_number,
    format_p_value,
)
from pipeline.report.render.answers import describe_answers
from pipeline.report.render.environment import render_document
from pipeline.report.render.markdown import MADE_BY_STROP, render_markdown_table
from pipeline.report.render.table import (
    NO_METRIC,
    Cell,
    ReportTable,
    difference_cell,
    find_difference,
    join_details,
)
from pipeline.report.render.tables import contests, models

NO_CHOSEN = {"chosen": None}


def render_page(report: ReportRow, answers: pl.DataFrame, verdicts: pl.DataFrame) -> str:
    verdict = report["verdict"]
    evaluation = {"chosen": None, "scorer": report["ground"]["chief"]}
    return render_document(
        "comparison.html",
        script="answers.js",
        title=verdict["headline"],
        badge=BADGES[verdict["better"]],
        better=verdict["better"],
        lead=verdict["why"],
        notes=_list_notes(report),
        tables=build_tables(report),
        answers=describe_answers({**report, "evaluation": evaluation}, answers, verdicts),
        footer=[(row["name"], f"{row['row']} · {row['model']}") for row in report["compared"]],
    )


def render_markdown(report: ReportRow) -> str:
    verdict = report["verdict"]
    parts = [
        f"# Comparison\n\n**{verdict['headline']}** {verdict['why']}",
        "\n".join(f"- {text}" for text in _list_notes(report)),
        *map(render_markdown_table, build_tables(report)),
        MADE_BY_STROP,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def build_tables(report: ReportRow) -> list[ReportTable]:
    tables = (
        _build_models(report),
        _build_criteria(report),
        contests.build_duels(report),
        models.build_habits({**report, "evaluation": NO_CHOSEN}),
    )
    return [table for table in tables if table.rows]


def _build_models(report: ReportRow) -> ReportTable:
    ground, first = report["ground"], report["models"][0]["name"]
    primary = ground["chief"]
    note = (
        f"{format_count(ground['asked'])} common prompts; each mean has its"
        f" {format_level(ground['level'])}. {_explain_power(report)}"
    )
    columns = (
        "model",
        primary or "no common scorer",
        f"Δ over {first}",
        "p",
        "tokens",
        "KL to its own sft",
    )
    rows = [_model_row(report, model, primary) for model in report["models"]]
    return ReportTable("Models", note, columns, rows)


def _explain_power(report: ReportRow) -> str:
    """The smallest difference that each of them could show."""
    gaps = [row for row in report["differences"] if row["scorer"] == report["ground"]["chief"]]
    asked = report["ground"]["asked"]
    known = []
    for row in gaps:
        scored = "" if row["n"] == asked else f", on {row['n']} with scores"
        if not is_flat(row):
            known.append(f"{format_detectable(row)} ({row['model']}{scored})")
    if not known:
        return NO_SPREAD if any(row["n"] > 1 for row in gaps) else ""
    return f"This many prompts can detect a difference of {', '.join(known)} with 80 % power."


def _model_row(report: ReportRow, model: ReportRow, primary: str | None) -> list[Cell]:
    metric, kl = model["metrics"].get(primary, NO_METRIC), model["kl"]
    tokens = model["tokens"]
    gap = find_difference(report, model["name"], primary or "")
    failed = f"{format_count(metric['failed'])} without score" if metric["failed"] else ""
    return [
        Cell(model["name"]),
        Cell(format_number(metric["mean"]), join_details(format_interval(metric), failed)),
        difference_cell(report, model["name"], primary or ""),
        Cell(format_p_value(gap["p_holm"]) if gap else UNKNOWN),
        _rounded_cell(tokens, 1),
        _rounded_cell(kl, 2),
    ]


def _rounded_cell(figure: ReportRow, digits: int) -> Cell:
    ends = format_interval(figure, lambda value: format_number(value, digits))
    return Cell(format_number(figure["mean"], digits), join_details(ends))


def _build_criteria(report: ReportRow) -> ReportTable:
    first, primary = report["models"][0]["name"], report["ground"]["chief"]
    others = [model["name"] for model in report["models"][1:]]
    names = dict.fromkeys(
        name for model in report["models"] for name in model["metrics"] if name != primary
    )
    columns = (
        "scorer",
        *(model["name"] for model in report["models"]),
        *(f"Δ {name}" for name in others),
    )
    rows = []
    for name in names:
        metrics = [model["metrics"].get(name, NO_METRIC) for model in report["models"]]
        means = [Cell(format_number(metric["mean"])) for metric in metrics]
        gains = [difference_cell(report, other, name) for other in others]
        rows.append([Cell(name), *means, *gains])
    note = f"Every common scorer and its criteria; Δ is over {first}."
    return ReportTable("Scorer by scorer", note, columns, rows)


def _list_notes(report: ReportRow) -> list[str]:
    return [
        *report["ground"]["apart"],
        *(f"{row['model']}: {row['what']}" for row in report["missing"]),
    ]
