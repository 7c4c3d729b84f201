"""Conversations of several turns. A turn is an ordinary sampling run on the conversation so far.

The rows of every turn are kept, under the settings `answer`, `turn-2`, `turn-3` …; a question ends
with its last turn.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import (
    DROPPED_FILE,
    Prompts,
    Samples,
    note_cost,
    read_cost,
    read_table,
    write_table,
)
from pipeline.backends import Message
from pipeline.errors import UserError
from pipeline.text import strip_reasoning

TURNS = "scratch/turns"
LIST_FILES = DROPPED_FILE, "failed.parquet"
DIFFERENCE = "quantization_difference"


def turn_folder(out: Path, turn: int) -> Path:
    return out / TURNS / str(turn)


def write_next_prompts(questions: Prompts, samples: Samples, turn: int, out: Path) -> Prompts:
    """The prompts of the next turn: the conversation so far and the question's next message."""
    columns = questions.read_columns()
    rows = []
    for prompt_id, prompt, completion in (
        samples.read().select("prompt_id", "prompt", "completion").iter_rows()
    ):
        turns = columns[prompt_id].get("turns") or []
        if turn < len(turns):
            messages = append_turn(prompt, completion, turns[turn])
            rows.append((prompt_id, messages, json.dumps(columns[prompt_id])))
    if not rows:
        raise UserError(
            f"sample: no question has a turn {turn + 1}.\n"
            '  Give questions with turns, [{"turns": ["Who …?", "And why?"]}, …],'
            " or evaluate.chats.NAME.turns=1."
        )
    schema: Any = {
        "prompt_id": pl.String,
        "prompt": samples.read().schema["prompt"],
        "columns": pl.String,
    }
    write_table(out / "prompts.parquet", pl.DataFrame(rows, schema=schema, orient="row"))
    return Prompts(out)


def append_turn(prompt: list[Message], answer: str, question: str) -> list[Message]:
    """A model's reasoning is not part of the conversation."""
    reply = {"role": "assistant", "content": strip_reasoning(answer)}
    return [*prompt, reply, {"role": "user", "content": question}]


def merge_turns(out: Path, turns: int) -> Samples:
    """Merge all turns' rows, lists and costs into those of one sampling run."""
    folders = [turn_folder(out, turn) for turn in range(1, turns + 1)]
    (out / "samples").mkdir(exist_ok=True)
    for turn, folder in enumerate(folders, 1):
        for shard in sorted((folder / "samples").glob("*.parquet")):
            shutil.copyfile(shard, out / "samples" / f"turn-{turn}-{shard.name}")
    merge_records(out, folders)
    return Samples(out)


def merge_records(out: Path, folders: list[Path]) -> None:
    """Merge all turns' lists of dropped and failed rows, and their costs."""
    for name in LIST_FILES:
        tables = [read_table(folder / name) for folder in folders if (folder / name).exists()]
        if tables:
            write_table(out / name, pl.concat(tables))
    note_cost(out, **_sum_costs(folders))


def _sum_costs(folders: list[Path]) -> dict[str, float]:
    """Sum what can be summed; a speed and a mean cannot."""
    costs = [read_cost(folder) for folder in folders]
    sums: dict[str, float] = {}
    for name, figure in (item for cost in costs for item in cost.items()):
        if name not in ("mean_tokens", "tokens_per_second", "parameters", DIFFERENCE):
            sums[name] = round(sums.get(name, 0) + figure, 6)
    differences = [cost[DIFFERENCE] for cost in costs if DIFFERENCE in cost]
    largest = {DIFFERENCE: max(differences)} if differences else {}
    model = {name: figure for name, figure in costs[0].items() if name == "parameters"}
    mean_tokens = round(sums["tokens"] / max(sums["completions"], 1), 1)
    return {**sums, **largest, **model, "mean_tokens": mean_tokens}
