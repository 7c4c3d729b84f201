"""Files of published answers, and columns that share out pairs, are checked first of all."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.preflight import check_artifact
from pipeline.step import Identity
from tests.support import evals
from tests.support.house import check_steps, composed

SMALL = ["recipes=smoke", "backend=transformers", "score=length"]
OWN = ["prompts=file", "prompts.path=p.jsonl", "prompts.split={dev: 4, test: 4}"]
OWN += ["sample.per_round=8"]
PAPER = "evaluate.baselines.paper"
GIVEN = [f"+baseline@{PAPER}=answers", f"{PAPER}.file=paper.json"]
OTHERS = json.dumps([{"instruction": "another", "output": "x"}])
NOT_ASKED = rf"{PAPER}\.file=paper\.json: none of its 1 questions is among the prompts"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n}?", "topic": "sums"} for n in range(40)]
    Path("p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


def steps(*words: str) -> list:
    return plan(composed(*SMALL, *words)).ancestors()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"paper\.json: cannot be read as JSON"),
        ("{no", r"paper\.json: cannot be read as JSON"),
        ("[]", rf"{PAPER}\.file=paper\.json: it holds no answer\.\n  Expected rows such as"),
        ('[{"instruction": "q"}]', r"row 1: no answer is found in it"),
    ],
)
@pytest.mark.parametrize("prompts", [OWN, ["prompts=playground"]])
def test_a_file_without_answers_is_refused_whatever_the_prompts(prompts, text, said):
    Path("paper.json").write_text(text)
    with pytest.raises(UserError, match=said):
        check_steps(steps(*prompts, *GIVEN))


def test_a_missing_file_is_listed_once_by_the_knob_that_was_typed():
    identity, faults = Identity(lambda path: Path(path).read_text()), set()
    for step in steps(*OWN, *GIVEN):
        try:
            identity.fingerprint(step)
        except UserError as error:
            faults |= {*str(error).splitlines()}
    [fault] = faults
    assert fault.startswith(f"{PAPER}.file=paper.json: no such file or folder")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["prompts.split.test={source: {kind: file, path: t.jsonl}, shape: auto, columns: {}}"],
    ],
)
def test_answers_to_other_questions_are_refused_before_the_prompts_are_built(words):
    Path("t.jsonl").write_text('{"prompt": "What is held out?"}\n')
    Path("paper.json").write_text(OTHERS)
    with pytest.raises(UserError, match=NOT_ASKED):
        check_steps(steps(*OWN, *words, *GIVEN))
    question = "What is held out?" if words else " What is 7? "
    Path("paper.json").write_text(json.dumps([{"instruction": question, "output": "x"}]))
    check_steps(steps(*OWN, *words, *GIVEN))


def test_a_file_without_answers_to_generated_prompts_is_refused_once_these_are_built(here):
    Path("paper.json").write_text(OTHERS)
    planned = steps("prompts=playground", *GIVEN)
    check_steps(planned)
    write_json(here / "funnel.json", {"out": dict.fromkeys(("train", "dev", "test"), 4000)})
    table = read_table(evals.prompts(here, ["p", "q"]).path / "prompts.parquet")
    for part in ("train", "dev", "test"):
        write_table(here / part / "prompts.parquet", table)
    made = next(step for step in planned if step.stage == "prompts")
    with pytest.raises(UserError, match=NOT_ASKED):
        check_artifact(made, lambda _: here, planned)
    questions = [prompt[0]["content"] for prompt in table["prompt"]]
    rows = [{"instruction": question, "output": "x"} for question in questions]
    Path("paper.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(
        UserError,
        match=rf"1 of the 2 prompts .* have no answer in it \(the first: '{questions[1]}'\)\."
        r" The limit is evaluate\.sample\.runtime\.max_failed=0\.01\.\n"
        r".*leave this baseline out \(~evaluate\.baselines\.paper\)",
    ):
        check_artifact(made, lambda _: here, planned)
    fewer = steps("prompts=playground", *GIVEN, "evaluate.sample.per_round=1")
    check_artifact(next(step for step in fewer if step.stage == "prompts"), lambda _: here, fewer)
    Path("paper.json").write_text(json.dumps(rows))
    check_artifact(made, lambda _: here, planned)


def test_a_column_that_shares_out_the_pairs_and_no_prompt_has_is_refused_before_sampling():
    budget = ["pair.budget.at_most=4", "pair.budget.balance"]
    with pytest.raises(
        UserError,
        match=r"pair\.budget\.balance reads the prompts' column topics, and no prompt has it"
        r" \(they have topic\)\.\n.*pair\.budget\.balance=null",
    ):
        check_steps(steps(*OWN, budget[0], f"{budget[1]}=topics"))
    check_steps(steps(*OWN, budget[0], f"{budget[1]}=topic"))
