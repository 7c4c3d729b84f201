"""Question sets as tables: each model's mean and turns by each scorer, and the judges' contests."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.report.analysis.chats import TURN
from pipeline.report.formatting import (
    UNKNOWN,
    ReportRow,
    format_count,
    format_interval,
    format_number,
    format_p_value,
)
from pipeline.report.render.table import (
    NO_METRIC,
    Cell,
    ReportTable,
    difference_cell,
    find_difference,
    join_details,
)
from pipeline.report.render.tables import contests, panels

TOKENS_COLUMN = "tokens per answer"


def build_chats(report: ReportRow) -> Iterator[ReportTable]:
    for name, chat in report["chats"].items():
        yield _build_scores(name, chat, report["evaluation"]["chosen"])
        yield replace(contests.build_duels(chat), title=f"{name}: win, tie, loss")
        yield replace(panels.build_panels(chat), title=f"{name}: panels")


def _build_scores(name: str, chat: ReportRow, chosen: str | None) -> ReportTable:
    turns = range(1, chat["turns"] + 1) if chat["turns"] > 1 else ()
    note = (
        f"{format_count(chat['prompts'])} questions."
        f" Answers for AlpacaEval's and FastChat's tools are in answers/{name}."
    )
    if not chat["scorers"]:
        rows = [[Cell(model["name"]), _tokens_cell(model)] for model in chat["models"]]
        return ReportTable(name, note, ("model", TOKENS_COLUMN), rows, chosen)
    columns = (
        "model",
        "scorer",
        "mean",
        *(f"turn {turn}" for turn in turns),
        "Δ over sft",
        "p",
        TOKENS_COLUMN,
    )
    rows = [
        _score_row(chat, model, scorer, turns)
        for scorer in chat["scorers"]
        for model in chat["models"]
    ]
    return ReportTable(name, note, columns, rows, chosen)


def _score_row(
    chat: ReportRow, model: ReportRow, scorer: str, turns: range | tuple[()]
) -> list[Cell]:
    whole = model["metrics"].get(scorer, NO_METRIC)
    by_turn = [model["metrics"].get(f"{scorer}{TURN}{turn}", NO_METRIC) for turn in turns]
    gap = find_difference(chat, model["name"], scorer)
    failed = f"{format_count(whole['failed'])} failed" if whole["failed"] else ""
    return [
        Cell(model["name"]),
        Cell(scorer),
        Cell(format_number(whole["mean"]), join_details(format_interval(whole), failed)),
        *(Cell(format_number(metric["mean"])) for metric in by_turn),
        difference_cell(chat, model["name"], scorer),
        Cell(format_p_value(gap["p_holm"]) if gap else UNKNOWN),
        _tokens_cell(model),
    ]


def _tokens_cell(model: ReportRow) -> Cell:
    return Cell(format_number(model["tokens"]["mean"], 1))
