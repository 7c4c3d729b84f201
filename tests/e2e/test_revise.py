"""Whole runs to a training: on revised answers, and on steps of sums."""

import json
import random
import subprocess
from itertools import product

import polars as pl
import pytest

from pipeline.data.solution_steps import find_false_equation
from tests.e2e.test_smoke import SMALL, command, environment

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1500)]
TRANSFORMERS = ["backend=transformers", "until=train@1", "train.guards.prompts=4"]


def run(folder, *words: str) -> None:
    finished = subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def read_trained(folder) -> pl.DataFrame:
    [pairs] = (folder / "store" / "pair").glob("*/train.parquet")
    assert [*(folder / "store" / "train").glob("*/model.json")]
    return pl.read_parquet(pairs, glob=False)


def test_revised_answers_are_trained_on_over_the_first_ones(tmp_path):
    words = ["revise=default", "base.context=1024", "revise.principles=[Be brief.]"]
    run(tmp_path, *SMALL, *TRANSFORMERS, *words)
    [revised] = (tmp_path / "store" / "revise").glob("*/samples/00000.parquet")
    ids = set(pl.read_parquet(revised, glob=False)["sample_id"])
    trained = read_trained(tmp_path)
    assert trained.height and ids & {*trained["chosen_id"], *trained["rejected_id"]}


def solve(a: int, b: int, c: int) -> tuple[str, str, int]:
    steps = f"Step 1: {a} + {b} = {a + b}.\nStep 2: {a + b} + {c} = {a + b + c}."
    return f"{a} + {b} + {c}?", f"{steps}\nThe answer is {a + b + c}", a + b + c


def write_lines(file, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_model_that_adds_badly_is_trained_on_single_steps(tmp_path):
    rows = [solve(*numbers) for numbers in product(range(1, 7), repeat=3)]
    random.Random(0).shuffle(rows)
    said = [(("user", question), ("assistant", text)) for question, text, _ in rows[:150]]
    messages = [[{"role": role, "content": text} for role, text in turns] for turns in said]
    write_lines(tmp_path / "sft.jsonl", ({"messages": turns} for turns in messages))
    problems = ({"prompt": question, "answer": str(result)} for question, _, result in rows)
    write_lines(tmp_path / "problems.jsonl", problems)
    words = [
        *SMALL[2:3],
        *("base=tiny", "sft=train", "demonstrations@sft.data=jsonl", "sft.data.path=sft.jsonl"),
        *("prompts.path=problems.jsonl", "prompts.near_duplicate_threshold=null", "score=math"),
        *("dtype=float32", "limits={prompt: 32, completion: 64}", "steps=default"),
        *("sft.learning_rate=4e-3", "sft.batch=16", "sft.epochs=24", "prompts.split.test=40"),
        *("prompts.split.dev=20", "sample.per_round=60", "sft.runtime.micro_batch=16"),
        *("sample.settings.draw.temperature=1.0", "train.batch=2", "train.runtime.micro_batch=2"),
        "pair.dev={share: 0.1, min: 2, max_share: 0.2}",
    ]
    run(tmp_path, *words, *TRANSFORMERS)
    trained = read_trained(tmp_path)
    for row in trained.to_dicts():
        begun = row["prompt"][-1]
        assert begun["role"] == "assistant"
        assert find_false_equation(row["rejected"][-1]["content"])
        assert not find_false_equation(row["chosen"][-1]["content"])
    assert trained.height
