"""`evaluate`: reads every model's exam, does the statistics and writes the report. It loads no model.

A model without scores, answers or log-probabilities is named under `missing`; the rest of the report is still written.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Exam, Model, Pairs, Prompts, Report, Verdicts, write_json, write_table, write_text
from pipeline.config import EvaluateConfig
from pipeline.errors import Refusal, nearest
from pipeline.report import tables
from pipeline.report.card import card
from pipeline.report.cost import cost_of
from pipeline.report.examined import Examined, read_exam
from pipeline.report.examples import prompt_text
from pipeline.report.funnel import funnel_of
from pipeline.report.judged import judged
from pipeline.report.page import page
from pipeline.report.verdict import Question, verdict


def run(
    cfg: EvaluateConfig,
    out: Path,
    *,
    prompts: Prompts,
    exams: dict[str, Exam],
    chosen: Model,
    pairs: list[Pairs],
    duels: dict[str, dict[str, dict[str, Verdicts]]] | None = None,
) -> Report:
    asked = prompts.read()
    examined = [read_exam(name, exam, frozenset(asked["prompt_id"]), cfg.scorer) for name, exam in exams.items()]
    check_scorer(cfg.scorer, examined)
    draw = tables.sampling(cfg)
    fought = [*tables.duels(examined, cfg.scorer, draw), *judged(duels or {}, examined, draw)]
    question = Question(prompts.path.name, len(asked), cfg.scorer, cfg.level, name_of(chosen, examined))
    report = assemble(cfg, out, question, examined, fought, pairs)
    answers = answer_table(examined, asked)

    write_table(out / "answers.parquet", answers)
    write_table(out / "verdicts.parquet", tables.verdict_table(fought))
    write_json(out / "report.json", report)
    write_text(out / "report.md", card(report))
    write_text(out / "report.html", page(report, answers))
    return Report(out)


def assemble(
    cfg: EvaluateConfig,
    out: Path,
    question: Question,
    examined: list[Examined],
    fought: list[tables.Duel],
    pairs: list[Pairs],
) -> dict[str, Any]:
    draw = tables.sampling(cfg)
    names = tables.scorers(examined, cfg.scorer)
    models = tables.models(examined, names, draw)
    differences = tables.differences(examined, names, draw)
    return {
        "exam": asdict(question),
        "verdict": verdict(question, models, differences),
        "models": models,
        "differences": differences,
        "duels": [tables.duel_row(duel) for duel in fought],
        "benchmarks": [],
        "funnel": funnel_of(out, pairs),
        "training": tables.training(examined),
        "cost": cost_of(out),
        "missing": tables.missing(examined),
    }


def check_scorer(scorer: str, examined: list[Examined]) -> None:
    known = sorted({name for model in examined for name in model.marks})
    if known and scorer not in known:
        raise Refusal(f"evaluate.scorer={scorer} marked no answer of this exam. {nearest(scorer, known)}")


def name_of(chosen: Model, examined: list[Examined]) -> str | None:
    return next((model.name for model in examined if model.path == chosen.path), None)


def answer_table(examined: list[Examined], asked: pl.DataFrame) -> pl.DataFrame:
    """Every answer of every model with its primary score, prompt by prompt."""
    texts = [prompt_text(messages) for messages in asked["prompt"].to_list()]
    prompts = pl.DataFrame({"prompt_id": asked["prompt_id"], "prompt": texts}).with_row_index("place")
    parts = [
        model.answers.with_columns(model=pl.lit(model.name), order=pl.lit(order)).with_row_index("index")
        for order, model in enumerate(examined)
    ]
    columns = ["prompt_id", "sample_id", "model", "completion", "score", "tokens", "finish_reason", "prompt"]
    table = pl.concat(parts).join(prompts, on="prompt_id", how="inner", validate="m:1")
    return table.sort("place", "order", "index").select(columns)
