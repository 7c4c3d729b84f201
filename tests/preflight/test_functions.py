"""A user's function is called once before anything is built, on a prompt of the user's."""

import json
import re
from pathlib import Path

import pytest

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.driver.run import run_point
from pipeline.errors import DONE, USER_ERROR, UserError
from pipeline.plan import plan
from pipeline.preflight.inputs import check_prompts
from tests.support import evals
from tests.support.house import composed

FUNCTIONS = """
from pathlib import Path

def right(prompts, completions, answer, **columns):
    assert [type(chat) for chat in (*prompts, *completions)] == [list] * 4
    return [float(answer[0] in chat[-1]["content"]) for chat in completions]

def no_opinion(completions, **columns): return [None for _ in completions]
def reads_a_column(completions, solution, **columns): return [0.0 for _ in completions]
def gives_words(completions, **columns): return ["good" for _ in completions]
def gives_nan(completions, **columns): return [float("nan") for _ in completions]
def gives_one(completions, **columns): return [1.0]
def forgets(completions, **columns): ...
def takes_text(completions, **columns): return [len(answer.split()) for answer in completions]
def counts(completions, **columns):
    with Path("calls.txt").open("a") as calls:
        print(len(completions), sorted(columns), file=calls)
    return [1.0 for _ in completions]
"""
PROMPTS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FUNCTIONS)
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in PROMPTS))
    return tmp_path


def plan_with(function: str, *words: str):
    given = ["sft.model=hub/model", f"sft.revision={'0' * 40}", "backend=transformers"]
    if "prompts=playground" not in words:
        given += ["prompts.path=prompts.jsonl", "prompts.split={dev: 5, test: 5}"]
    own = ["score=function", f"score.scorers.function.function=./own.py:{function}"]
    return composed(*given, *own, *words, "dry_run=true")


@pytest.mark.parametrize("function", ["right", "no_opinion"])
def test_a_function_that_answers_is_taken_and_leaves_nothing_behind(capsys, function):
    before = sorted(Path().rglob("*"))
    assert run_point(plan_with(function)) == DONE, capsys.readouterr()
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("reads_a_column", r"TypeError: .*'solution'"),
        ("gives_words", r"the function gave 'good', which is not a number"),
        ("gives_nan", r"the function gave nan"),
        ("gives_one", r"the function gave 1 score for 2 completions"),
        ("forgets", r"TypeError: 'NoneType' object is not iterable"),
        ("takes_text", r"the text of an answer is answer\[-1\]\['content'\]"),
    ],
)
def test_a_fault_is_named_with_the_call_that_repeats_it(capsys, function, fault):
    assert run_point(plan_with(function)) == USER_ERROR
    shown = capsys.readouterr().out
    place = rf"score\.scorers\.function\.function=\./own\.py:{function}: "
    assert re.search(f"{place}.*{fault}", shown)
    assert shown.count("own.py:") == 1, "the evaluations score by it too, and say it no second time"
    [call] = re.findall(rf"^  ({function}\(.*\))$", shown, re.MULTILINE)
    names: dict = {}
    exec(FUNCTIONS, names)
    prompt = [{"role": "user", "content": "What is 0 + 0?"}]
    arguments = eval(call.replace(function, "dict", 1), {})
    assert arguments["prompts"] == [prompt] * 2 and arguments["answer"] == ["0", "0"]
    assert len(arguments["completions"]) == 2


def test_many_steps_score_by_one_function_and_it_is_called_once():
    assert run_point(plan_with("counts", "rounds=2", "sample.per_round=10")) == DONE
    assert Path("calls.txt").read_text() == "2 ['answer', 'prompts']\n"


def test_generated_prompts_have_a_row_as_well(capsys):
    assert run_point(plan_with("reads_a_column", "prompts=playground")) == USER_ERROR
    assert "'solution'" in capsys.readouterr().out
    assert run_point(plan_with("counts", "prompts=playground")) == DONE
    assert "constraints" in Path("calls.txt").read_text()


def test_where_every_score_may_fail_nothing_is_refused():
    assert run_point(plan_with("forgets", "score.max_failed=1")) == DONE


GRADE = "def grade(question, answer): return len(answer) / (1 + len(question))\n"


def test_a_function_of_other_arguments_is_refused_with_one_that_calls_it(capsys):
    Path("own.py").write_text(GRADE)
    assert run_point(plan_with("grade")) == USER_ERROR
    shown = capsys.readouterr().out
    assert "grade(question, answer) is called with prompts, completions" in shown
    [_, advice] = shown.split("name that one:\n")
    lines = advice.splitlines()[:3]
    indent = len(lines[0]) - len(lines[0].lstrip())
    Path("own.py").write_text(GRADE + "\n".join(line[indent:] for line in lines))
    assert run_point(plan_with("score")) == DONE


ASKS = """
def by_argument(completions, question, **columns): return [0.0 for _ in question]
def by_key(completions, **columns): return [0.0 for _ in columns["question"]]
def by_prompts(prompts, completions, **columns):
    return [float(len(prompt[-1]["content"])) for prompt in prompts]
"""


@pytest.mark.parametrize("function", ["by_argument", "by_key"])
def test_the_column_that_became_the_prompt_is_named_with_how_to_read_it(capsys, function):
    Path("own.py").write_text(ASKS)
    rows = [{"question": row["prompt"]} for row in PROMPTS]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert run_point(plan_with(function)) == USER_ERROR
    shown = capsys.readouterr().out
    assert "prompts prompts.jsonl, column question (dev 5, test 5)" in shown
    assert "Your column question became the prompt: take the argument prompts" in shown
    assert run_point(plan_with("by_prompts")) == DONE


def test_a_column_by_which_the_prompt_is_renamed_is_named_as_the_file_has_it(capsys):
    Path("own.py").write_text(ASKS.replace("question", "task"))
    rows = [{"task": row["prompt"]} for row in PROMPTS]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["prompts.shape=columns", "prompts.columns={prompt: task}"]
    assert run_point(plan_with("by_key", *words)) == USER_ERROR
    shown = capsys.readouterr().out
    assert "column task (dev" in shown and "Your column task became the prompt" in shown


def test_a_scorer_of_the_column_that_became_the_prompt_is_refused_with_the_reason(capsys):
    rows = [{"question": row["prompt"]} for row in PROMPTS]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["score=math", "score.scorers.math.column=question"]
    own = ["sft.model=hub/model", f"sft.revision={'0' * 40}", "prompts.path=prompts.jsonl"]
    cfg = composed(*own, "prompts.split={dev: 5, test: 5}", *words, "dry_run=true")
    assert run_point(cfg) == USER_ERROR
    assert "only their text; question became the prompt itself" in capsys.readouterr().out


def test_a_function_that_does_not_exist_is_named_once(capsys):
    assert run_point(plan_with("rite")) == USER_ERROR
    assert capsys.readouterr().out.count("has no function rite") == 1


def test_prompts_that_are_built_give_the_row(tmp_path):
    """Prompts of the hub are not read before their step has built them."""
    for part in ("train", "dev", "test"):
        table = read_table(evals.prompts(tmp_path / "made", ["p"]).path / "prompts.parquet")
        write_table(tmp_path / part / "prompts.parquet", table)
    write_json(tmp_path / "funnel.json", {"out": dict.fromkeys(("train", "dev", "test"), 1)})
    steps = plan(plan_with("reads_a_column")).ancestors()
    [made] = [step for step in steps if step.stage == "prompts"]
    with pytest.raises(UserError, match="'solution'.*\n.*Tell me about p"):
        check_prompts(made, tmp_path, steps)
