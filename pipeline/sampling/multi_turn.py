"""Conversations of several turns: each turn is an ordinary draw, whose prompts hold what was said before.

Every turn's rows stay, under the setting `answer`, `turn-2`, `turn-3` …; a question ends with its last turn.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, Samples, note_cost, read_cost, read_table, write_table
from pipeline.backends import Message
from pipeline.errors import UserError
from pipeline.text import strip_reasoning

TURNS = "scratch/turns"
LISTS = "dropped.parquet", "failed.parquet"
DIFFERENCE = "quantization_difference"


def folder(out: Path, turn: int) -> Path:
    return out / TURNS / str(turn)


def following(questions: Prompts, said: Samples, turn: int, out: Path) -> Prompts:
    """What is asked in the next turn: all that was said, and the question's next words."""
    told = questions.read_columns()
    rows = []
    for prompt_id, prompt, completion in (
        said.read().select("prompt_id", "prompt", "completion").iter_rows()
    ):
        turns = told[prompt_id].get("turns") or []
        if turn < len(turns):
            rows.append(
                (prompt_id, spoken(prompt, completion, turns[turn]), json.dumps(told[prompt_id]))
            )
    if not rows:
        raise UserError(
            f"sample: no question has a turn {turn + 1}.\n"
            '  Give questions with turns, [{"turns": ["Who …?", "And why?"]}, …], or exam.chats.NAME.turns=1.'
        )
    schema: Any = {
        "prompt_id": pl.String,
        "prompt": said.read().schema["prompt"],
        "columns": pl.String,
    }
    write_table(out / "prompts.parquet", pl.DataFrame(rows, schema=schema, orient="row"))
    return Prompts(out)


def spoken(prompt: list[Message], answer: str, question: str) -> list[Message]:
    """What a model thought before it answered is no part of what it said."""
    said = {"role": "assistant", "content": strip_reasoning(answer)}
    return [*prompt, said, {"role": "user", "content": question}]


def gather(out: Path, turns: int) -> Samples:
    """All turns' rows, lists and costs as those of one draw."""
    places = [folder(out, turn) for turn in range(1, turns + 1)]
    (out / "samples").mkdir(exist_ok=True)
    for turn, place in enumerate(places, 1):
        for shard in sorted((place / "samples").glob("*.parquet")):
            shutil.copyfile(shard, out / "samples" / f"turn-{turn}-{shard.name}")
    for name in LISTS:
        if listed := [read_table(place / name) for place in places if (place / name).exists()]:
            write_table(out / name, pl.concat(listed))
    note_cost(out, **_costs(places))
    return Samples(out)


def _costs(places: list[Path]) -> dict[str, float]:
    """What adds up is added up; a speed and a mean do not."""
    costs = [read_cost(place) for place in places]
    sums: dict[str, float] = {}
    for name, figure in (item for cost in costs for item in cost.items()):
        if name not in ("mean_tokens", "tokens_per_second", "parameters", DIFFERENCE):
            sums[name] = round(sums.get(name, 0) + figure, 6)
    largest = (
        {DIFFERENCE: max(gaps)}
        if (gaps := [cost[DIFFERENCE] for cost in costs if DIFFERENCE in cost])
        else {}
    )
    model = {name: figure for name, figure in costs[0].items() if name == "parameters"}
    return {
        **sums,
        **largest,
        **model,
        "mean_tokens": round(sums["tokens"] / max(sums["completions"], 1), 1),
    }
