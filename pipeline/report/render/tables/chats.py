"""Sets of questions as tables: each model's mean and turns by each scorer, and the judges' contests."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.report.analysis.chats import TURN
from pipeline.report.formatting import UNKNOWN, Row, count, interval, number, p_value
from pipeline.report.render.table import UNMARKED, Cell, Sheet, detail, gap_of, row_of
from pipeline.report.render.tables import contests

TOKENS = "tokens per answer"


def chats(report: Row) -> Iterator[Sheet]:
    for name, chat in report["chats"].items():
        yield _scores(name, chat, report["exam"]["chosen"])
        fought = contests.duels(chat)
        yield replace(fought, title=f"{name}: win, tie, loss")


def _scores(name: str, chat: Row, chosen: str | None) -> Sheet:
    turns = range(1, chat["turns"] + 1) if chat["turns"] > 1 else ()
    note = f"{count(chat['prompts'])} questions. Answers for AlpacaEval's and FastChat's tools are in answers/{name}."
    if not chat["scorers"]:
        rows = [[Cell(model["name"]), _tokens(model)] for model in chat["models"]]
        return Sheet(name, note, ("model", TOKENS), rows, chosen)
    columns = (
        "model",
        "scorer",
        "mean",
        *(f"turn {turn}" for turn in turns),
        "Δ over sft",
        "p",
        TOKENS,
    )
    rows = [
        _row(chat, model, scorer, turns) for scorer in chat["scorers"] for model in chat["models"]
    ]
    return Sheet(name, note, columns, rows, chosen)


def _row(chat: Row, model: Row, scorer: str, turns: range | tuple[()]) -> list[Cell]:
    of = {
        name: model["metrics"].get(name, UNMARKED)
        for name in (scorer, *(f"{scorer}{TURN}{t}" for t in turns))
    }
    gap = row_of(chat, model["name"], scorer)
    failed = f"{count(of[scorer]['failed'])} failed" if of[scorer]["failed"] else ""
    return [
        Cell(model["name"]),
        Cell(scorer),
        Cell(number(of[scorer]["mean"]), detail(interval(of[scorer]), failed)),
        *(Cell(number(of[f"{scorer}{TURN}{turn}"]["mean"])) for turn in turns),
        gap_of(chat, model["name"], scorer),
        Cell(p_value(gap["p_holm"]) if gap else UNKNOWN),
        _tokens(model),
    ]


def _tokens(model: Row) -> Cell:
    return Cell(number(model["tokens"]["mean"], 1))
