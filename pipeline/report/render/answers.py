"""All models' answers side by side: as a table, and packed into the page, where answers.js shows what is looked for.

Without scripts the page shows the largest gains and losses alone. Texts travel as compressed JSON in base64, in which
no tag can begin, and the script writes them as text, never as HTML.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import polars as pl

from pipeline.report.analysis.eval_results import EvalResult
from pipeline.report.formatting import Row
from pipeline.report.render.examples import examples_html, prompt_text
from pipeline.report.render.figures.contests import shown
from pipeline.report.render.svg import colour

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

BROWSER = """
<form id="asked" hidden>
<label>Text<input type="search" name="text" placeholder="in prompts and answers" autocomplete="off"></label>
<label>Contest<select name="contest"></select></label>
<label>Who won<select name="winner"></select></label>
<label>Sort<select name="sort"><option value="won">margin, largest first</option>
<option value="lost">margin, smallest first</option><option value="asked">order of the exam</option></select></label>
<output name="count" aria-live="polite"></output>
</form>
<div id="found" class="sheet" hidden></div>
<button id="more" type="button" hidden>Show more</button>
"""


def answer_table(examined: Sequence[EvalResult], asked: pl.DataFrame) -> pl.DataFrame:
    """Every answer of every model to these prompts, with its primary score, prompt by prompt."""
    texts = [prompt_text(messages) for messages in asked["prompt"].to_list()]
    prompts = pl.DataFrame({"prompt_id": asked["prompt_id"], "prompt": texts}).with_row_index(
        "place"
    )
    parts = [
        model.answers.with_columns(model=pl.lit(model.name), order=pl.lit(order)).with_row_index(
            "index"
        )
        for order, model in enumerate(examined)
    ]
    table = pl.concat(parts).join(prompts, on="prompt_id", how="inner", validate="m:1")
    return table.sort("place", "order", "index").select(COLUMNS)


def answers_html(report: Row, answers: pl.DataFrame, verdicts: pl.DataFrame | None) -> str:
    chosen = report["exam"]["chosen"]
    if answers.is_empty():
        return ""
    data = b64encode(
        zlib.compress(json.dumps(packed(report, answers, verdicts)).encode(), 9)
    ).decode()
    return (
        '<section id="answers"><h2>Answers side by side</h2>'
        '<p class="note">A margin is what the first of a contest is ahead on the prompt. '
        "answers.parquet and verdicts.parquet have all of it as tables.</p>"
        f'<div id="some">{examples_html(answers, chosen)}</div>{BROWSER}'
        f'<script type="text/plain" id="packed">{data}</script></section>'
    )


def packed(report: Row, answers: pl.DataFrame, verdicts: pl.DataFrame | None) -> dict[str, Any]:
    """`contests`: those that the figures show, the chosen model against SFT first. `prompts`: one entry each, with the
    answers of every model in turn and, by the contest's place, its verdict, margin and what was said in each order."""
    models = answers["model"].unique(maintain_order=True).to_list()
    there = [
        duel
        for duel in shown(report)
        if verdicts is not None and {duel["a"], duel["b"]} <= {*models}
    ]
    contests = sorted(
        there, key=lambda duel: (duel["a"], duel["b"]) != (report["exam"]["chosen"], "sft")
    )
    told = _told([(duel["a"], duel["b"], duel["judge"]) for duel in contests], verdicts)
    return {
        "models": [{"name": name, "colour": colour(name)} for name in models],
        "contests": [{"a": duel["a"], "b": duel["b"], "judge": duel["judge"]} for duel in contests],
        "prompts": [
            {"prompt": asked, "answers": by_model, "verdicts": told.get(key, {})}
            for key, asked, by_model in _prompts(answers, models)
        ],
    }


def _prompts(answers: pl.DataFrame, models: list[str]) -> list[tuple[str, str, list[list[Any]]]]:
    found: dict[str, tuple[str, str, list[list[Any]]]] = {}
    columns = answers.select("prompt_id", "prompt", "model", "completion", "score", "finish_reason")
    for key, asked, model, text, score, finish in columns.iter_rows():
        _, _, by_model = found.setdefault(key, (key, asked, [[] for _ in models]))
        by_model[models.index(model)].append([text, _short(score), int(finish == "length")])
    return [*found.values()]


def _told(
    contests: list[tuple[str, str, str]], verdicts: pl.DataFrame | None
) -> dict[str, dict[int, list[Any]]]:
    places = {contest: place for place, contest in enumerate(contests)}
    told: dict[str, dict[int, list[Any]]] = {}
    columns = ("a", "b", "judge", "prompt_id", "verdict", "score_a", "score_b", "orders")
    for a, b, judge, key, verdict, of_a, of_b, orders in (
        [] if verdicts is None else verdicts.select(columns).rows()
    ):
        if (a, b, judge) in places:
            told.setdefault(key, {})[places[a, b, judge]] = [verdict, _short(of_a - of_b), orders]
    return told


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
