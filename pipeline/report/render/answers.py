"""All models' answers: as a table, and packed into the page, where answers.js filters them.

Without scripts the page shows only the largest gains and losses. Texts travel as compressed JSON in
base64, in which no tag can begin; the script writes them as text, never as HTML.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.report.analysis.eval_results import EvalResult
from pipeline.report.formatting import ReportRow
from pipeline.report.render.examples import choose_examples, format_prompt
from pipeline.report.render.figures.contests import select_contests
from pipeline.report.render.svg import colour_class

COLUMNS = (
    "prompt_id",
    "sample_id",
    "model",
    "completion",
    "score",
    "tokens",
    "finish_reason",
    "prompt",
)
DIGITS = 6


def tabulate_answers(results: Sequence[EvalResult], prompts: pl.DataFrame) -> pl.DataFrame:
    """Every answer of every model to these prompts, with its primary score, prompt by prompt."""
    texts = [format_prompt(messages) for messages in prompts["prompt"].to_list()]
    shown = pl.DataFrame({"prompt_id": prompts["prompt_id"], "prompt": texts})
    parts = [
        model.answers.with_columns(model=pl.lit(model.name), order=pl.lit(order)).with_row_index(
            "index"
        )
        for order, model in enumerate(results)
    ]
    table = pl.concat(parts).join(
        shown.with_row_index("place"), on="prompt_id", how="inner", validate="m:1"
    )
    return table.sort("place", "order", "index").select(COLUMNS)


def describe_answers(
    report: ReportRow, answers: pl.DataFrame, verdicts: pl.DataFrame | None
) -> dict[str, Any] | None:
    if answers.is_empty():
        return None
    text = json.dumps(pack_answers(report, answers, verdicts))
    return {
        "examples": choose_examples(answers, report["evaluation"]["chosen"]),
        "packed": b64encode(zlib.compress(text.encode(), 9)).decode(),
    }


def pack_answers(
    report: ReportRow, answers: pl.DataFrame, verdicts: pl.DataFrame | None
) -> dict[str, Any]:
    """What answers.js reads.

    `contests`: those that the figures show, the chosen model against SFT first. `prompts`: one
    entry each, with every model's answers in the order of `models` and, by the contest's place, the
    verdict, the margin and the verdict in each order of the answers.
    """
    models = answers["model"].unique(maintain_order=True).to_list()
    chosen = report["evaluation"]["chosen"], "sft"
    contests = [
        duel
        for duel in select_contests(report)
        if verdicts is not None and {duel["a"], duel["b"]} <= {*models}
    ]
    contests.sort(key=lambda duel: (duel["a"], duel["b"]) != chosen)
    keys = [(duel["a"], duel["b"], duel["judge"]) for duel in contests]
    by_prompt = _collect_verdicts(keys, verdicts)
    return {
        "models": [{"name": name, "colour": colour_class(name)} for name in models],
        "contests": [{"a": a, "b": b, "judge": judge} for a, b, judge in keys],
        "prompts": [
            {"prompt": prompt, "answers": by_model, "verdicts": by_prompt.get(key, {})}
            for key, prompt, by_model in _collect_prompts(answers, models)
        ],
    }


def _collect_prompts(
    answers: pl.DataFrame, models: list[str]
) -> list[tuple[str, str, list[list[Any]]]]:
    prompts: dict[str, tuple[str, str, list[list[Any]]]] = {}
    columns = answers.select("prompt_id", "prompt", "model", "completion", "score", "finish_reason")
    for key, prompt, model, text, score, finish in columns.iter_rows():
        _, _, by_model = prompts.setdefault(key, (key, prompt, [[] for _ in models]))
        by_model[models.index(model)].append([text, _round_score(score), int(finish == "length")])
    return [*prompts.values()]


def _collect_verdicts(
    contests: list[tuple[str, str, str]], verdicts: pl.DataFrame | None
) -> dict[str, dict[int, list[Any]]]:
    places = {contest: place for place, contest in enumerate(contests)}
    by_prompt: dict[str, dict[int, list[Any]]] = {}
    columns = ("a", "b", "judge", "prompt_id", "verdict", "score_a", "score_b", "orders")
    rows = [] if verdicts is None else verdicts.select(columns).rows()
    for a, b, judge, key, verdict, score_a, score_b, orders in rows:
        if (a, b, judge) in places:
            margin = _round_score(score_a - score_b)
            by_prompt.setdefault(key, {})[places[a, b, judge]] = [verdict, margin, orders]
    return by_prompt


def _round_score(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
