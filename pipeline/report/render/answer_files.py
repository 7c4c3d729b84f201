"""Answers to a question set in the files that AlpacaEval's and FastChat's own tools read.

FastChat: `model_answer/MODEL.jsonl`, a line for each question, by the id in its own file.
AlpacaEval: `alpaca_eval/MODEL.json`, a list of instruction, output, generator and dataset, for
single turns.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, write_json, write_text
from pipeline.hashing import hash_json
from pipeline.report.analysis.chats import QuestionSet, read_turns
from pipeline.text import strip_reasoning

IDS = "question_id", "uid"  # as MT-Bench and Arena-Hard call it
NO_TIME = 0.0  # a file of the store does not depend on when it was made


def write_answers(folder: Path, question_set: QuestionSet) -> None:
    questions = question_set.chat["prompts"]
    single_turn = max(question_set.turns.values(), default=1) == 1
    for model, artifacts in question_set.chat["evals"].items():
        answers = read_turns(artifacts)
        rows = list_fastchat_rows(question_set, model, answers)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / "model_answer" / f"{model}.jsonl", "".join(lines))
        if single_turn:
            entries = [*list_alpaca_eval_rows(question_set.name, questions, model, answers)]
            write_json(folder / "alpaca_eval" / f"{model}.json", entries)


def list_fastchat_rows(
    question_set: QuestionSet, model: str, answers: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    """A choice for each answer to the first turn; with several turns there is one.

    An incomplete conversation is left out: then the tool names the question instead of failing at
    the turn.
    """
    questions = question_set.chat["prompts"]
    by_prompt = questions.read_columns()
    for prompt_id in questions.read()["prompt_id"]:
        rows = answers.filter(pl.col("prompt_id") == prompt_id)
        turns = [
            [strip_reasoning(text) for text in rows.filter(pl.col("turn") == turn)["completion"]]
            for turn in rows["turn"].unique().sort()
        ]
        if len(turns) < question_set.turns[prompt_id]:
            continue
        columns = by_prompt[prompt_id]
        conversations = enumerate(zip(*turns, strict=True))
        yield {
            "question_id": next((columns[name] for name in IDS if name in columns), prompt_id),
            "answer_id": hash_json([*rows["sample_id"]])[:22],
            "model_id": model,
            "choices": [{"index": at, "turns": list(texts)} for at, texts in conversations],
            "tstamp": NO_TIME,
        }


def list_alpaca_eval_rows(
    name: str, questions: Prompts, model: str, answers: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    """One answer to each question, the first of several."""
    by_prompt = questions.read_columns()
    first = answers.unique("prompt_id", keep="first", maintain_order=True)
    texts = dict(first.select("prompt_id", "completion").iter_rows())
    for prompt_id, messages in questions.read().select("prompt_id", "prompt").iter_rows():
        if prompt_id in texts:
            yield {
                "dataset": by_prompt[prompt_id].get("dataset", name),
                "instruction": messages[-1]["content"],
                "output": strip_reasoning(texts[prompt_id]),
                "generator": model,
            }
