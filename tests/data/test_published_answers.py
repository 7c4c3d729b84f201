"""Answers in the shapes in which benchmarks publish them."""

import json

import pytest

from pipeline.config import AnswersFile
from pipeline.data.published_answers import read_published_answers
from pipeline.errors import UserError

MT_BENCH = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]}
ARENA_1 = {"question_id": "ab", "choices": [{"index": 0, "turns": [{"content": "an answer"}]}]}
ARENA_2 = {
    "uid": "cd",
    "messages": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": {"answer": "Because."}},
    ],
}
ALPACA = {"instruction": " Say hi. ", "output": "Hi.", "generator": "m", "dataset": "d"}


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(file: str, questions: str | None = None):
    cfg = AnswersFile(kind="answers", file=file, questions=questions)
    return read_published_answers(cfg, "evaluate.baselines.rival")


def test_alpacaeval_s_list_and_arena_hard_v2_have_their_questions(tmp_path):
    (tmp_path / "outputs.json").write_text(json.dumps([ALPACA, ALPACA | {"output": "later"}]))
    assert read(str(tmp_path / "outputs.json")) == {"Say hi.": ["Hi."]}
    assert read(write_lines(tmp_path / "arena.jsonl", [ARENA_2])) == {"Why?": ["Because."]}


def test_answers_by_number_are_found_through_the_file_of_questions(tmp_path):
    questions = write_lines(
        tmp_path / "question.jsonl",
        [
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
            {"uid": "ab", "prompt": "Explain."},
            {"question_id": "never answered", "turns": ["Hm."]},
        ],
    )
    answers = write_lines(tmp_path / "answers.jsonl", [MT_BENCH, ARENA_1])
    assert read(answers, questions) == {"Write.": ["one", "two"], "Explain.": ["an answer"]}


def test_without_the_questions_it_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"line 1: it names its question by 81 alone") as refusal:
        read(write_lines(tmp_path / "answers.jsonl", [MT_BENCH]))
    assert "evaluate.baselines.rival.questions=FILE" in str(refusal.value)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q"},
        {"instruction": "q", "output": None},
        {"question_id": 1, "choices": []},
        {"question_id": 1, "choices": [{"turns": []}]},
        {"choices": [{"turns": ["no number"]}]},
        {"uid": "a", "messages": [{"role": "user", "content": "only asked"}]},
        {"messages": ["text"]},
    ],
)
def test_another_shape_is_refused_with_its_line_and_the_known_ones(tmp_path, row):
    with pytest.raises(UserError, match=r"line 2: no answer is found in it") as refusal:
        read(write_lines(tmp_path / "answers.jsonl", [ALPACA, row]))
    assert "AlpacaEval" in str(refusal.value) and "FastChat" in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        read(str(tmp_path / "none.json"))
