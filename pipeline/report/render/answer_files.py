"""Answers to a set of questions in the files that AlpacaEval's and FastChat's own tools read.

FastChat: `model_answer/MODEL.jsonl`, a line for each question, by the id that its file gave it. AlpacaEval:
`alpaca_eval/MODEL.json`, a list of instruction, output, generator and dataset, for single turns.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, write_json, write_text
from pipeline.hashing import hash_json
from pipeline.report.analysis.chats import QuestionSet, said
from pipeline.text import strip_reasoning

IDS = "question_id", "uid"  # MT-Bench's and Arena-Hard's word for it
NO_TIME = 0.0  # a file of the store says nothing of when it was made


def write_answers(folder: Path, of: QuestionSet) -> None:
    questions = of.chat["prompts"]
    for model, exam in of.chat["exams"].items():
        answers = said(exam)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in fastchat(of, model, answers)]
        write_text(folder / "model_answer" / f"{model}.jsonl", "".join(lines))
        if max(of.asked.values(), default=1) == 1:
            write_json(
                folder / "alpaca_eval" / f"{model}.json",
                [*alpaca_eval(of.name, questions, model, answers)],
            )


def fastchat(of: QuestionSet, model: str, answers: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """A choice for each answer to the first turn; of several turns there is one.

    A conversation that broke off is left out: the tool then names the question, where it would fail at the turn.
    """
    told = of.chat["prompts"].read_columns()
    for prompt_id in of.chat["prompts"].read()["prompt_id"]:
        rows = answers.filter(pl.col("prompt_id") == prompt_id)
        turns = [
            [strip_reasoning(text) for text in rows.filter(pl.col("turn") == turn)["completion"]]
            for turn in rows["turn"].unique().sort()
        ]
        if len(turns) < of.asked[prompt_id]:
            continue
        yield {
            "question_id": next(
                (told[prompt_id][name] for name in IDS if name in told[prompt_id]), prompt_id
            ),
            "answer_id": hash_json([*rows["sample_id"]])[:22],
            "model_id": model,
            "choices": [
                {"index": at, "turns": list(said)}
                for at, said in enumerate(zip(*turns, strict=True))
            ],
            "tstamp": NO_TIME,
        }


def alpaca_eval(
    name: str, questions: Prompts, model: str, answers: pl.DataFrame
) -> Iterator[dict[str, Any]]:
    """One answer to each question, the first of several."""
    told = questions.read_columns()
    first = answers.unique("prompt_id", keep="first", maintain_order=True)
    texts = dict(first.select("prompt_id", "completion").iter_rows())
    for prompt_id, messages in questions.read().select("prompt_id", "prompt").iter_rows():
        if prompt_id in texts:
            yield {
                "dataset": told[prompt_id].get("dataset", name),
                "instruction": messages[-1]["content"],
                "output": strip_reasoning(texts[prompt_id]),
                "generator": model,
            }
