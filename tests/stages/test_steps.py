"""Step-DPO: the first wrong step, its beginning in tokens, continuations, and pairs of steps."""

import json
import re

import polars as pl
import pytest

from pipeline.artifacts import Model, Prompts, Samples, Scores, read_json, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.errors import StageError, UserError
from pipeline.pairing.step_pairs import cut_tokens, read_tokens
from pipeline.plan import plan
from pipeline.sampling import collector
from pipeline.stages import pair, sample, steps
from tests.backends.test_backends import transformers
from tests.stages.test_pair import SCORE
from tests.support.house import HOUSE, SMALL, check_steps, composed, named
from tests.support.judges import KEY, fake_judge
from tests.support.tiny import tiny_model

MATH = ["prompts.path=problems.jsonl", "sft.model=./model", "score=math"]
RIGHT = "Step 1: 1 + 2 = 3.\nStep 2: 3 + 1 = 4."
WRONG = "Step 1: 1 + 2 = 3.\nStep 2: 3 + 1 = 5.\nStep 3: So 5."
UNKNOWN = "Step 1: one and two.\nStep 2: five."


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "0123456789ab", layers=1)


@pytest.fixture(scope="module")
def chat(policy) -> ModelTokenizer:
    return ModelTokenizer(policy)


def search(*words: str):
    return composed(*MATH, *(words or ["steps=default"])).steps.search("math")


def solved(folder, chat, answers: dict[str, list[tuple[str, float]]]):
    """`prompt id → [(solution, score)]` as samples, scores and prompts."""
    prompts = {name: [{"role": "user", "content": f"sum {name}"}] for name in answers}
    rows = [
        (name, prompts[name], chat.encode(prompts[name], {}), f"{name}-{number}", text, score)
        for name, texts in answers.items()
        for number, (text, score) in enumerate(texts)
    ]
    table = [(name, prompt, json.dumps({"answer": "4"})) for name, prompt in prompts.items()]
    schema = {"prompt_id": pl.String, "prompt": collector.MESSAGES, "columns": pl.String}
    write_table(folder / "prompts.parquet", pl.DataFrame(table, schema=schema, orient="row"))
    return *write_answers(folder, chat, rows), Prompts(folder)


def write_answers(folder, chat, rows) -> tuple[Samples, Scores]:
    samples, scores = [], []
    for prompt_id, prompt, prompt_ids, sample_id, text, score in rows:
        ids = {"prompt_id": prompt_id, "sample_id": sample_id}
        tokens = {
            "prompt_token_ids": prompt_ids,
            "token_ids": [*chat.encode_literal(text), chat.eos],
        }
        answer = {"prompt": prompt, "completion": text, "finish_reason": "stop", "setting": "draw"}
        samples.append({**ids, **tokens, **answer})
        scores.append({**ids, "scorer": "math", "score": score, "status": "ok", "detail": ""})
    write_table(folder / "samples" / "0.parquet", pl.DataFrame(samples, schema=collector.SAMPLE))
    write_table(folder / "scores" / "0.parquet", pl.DataFrame(scores, schema=SCORE))
    return Samples(folder), Scores(folder)


def find(folder, policy, chat, answers, *words: str) -> Prompts:
    samples, scores, prompts = solved(folder / "in", chat, answers)
    given = {"policy": policy, "samples": [samples], "scores": [scores], "prompts": prompts}
    return steps.run(search(*words), folder / "steps", **given)


def test_the_beginning_ends_before_the_first_false_equation(tmp_path, policy, chat):
    answers = {
        "a": [(RIGHT, 1.0), (UNKNOWN, 0.0), (WRONG, 0.0)],
        "b": [(RIGHT, 1.0)],
        "c": [(UNKNOWN, 0.0)],
        "d": [(WRONG.replace("1 + 2 = 3", "1 + 2 = 9"), 0.0)],
    }
    made = find(tmp_path, policy, chat, answers)
    rows = {row["sample_id"]: row for row in made.read().to_dicts()}
    assert set(rows) == {"a-2", "d-0"}
    late, early = rows["a-2"], rows["d-0"]
    assert (late["prefix"], late["wrong"]) == (WRONG[:19], "Step 2: 3 + 1 = 5.\n")
    assert (early["prefix"], early["prefix_token_ids"]) == ("", [])
    assert early["wrong"] == "Step 1: 1 + 2 = 9.\n"
    whole = [*chat.encode_literal(WRONG), chat.eos]
    both = [*late["prefix_token_ids"], *late["wrong_token_ids"]]
    assert whole[: len(both)] == both and len(both) < len(whole)
    assert json.loads(late["columns"]) == {"answer": "4"} and late["found_by"] == "3 + 1 = 5"
    funnel = read_json(tmp_path / "steps" / "funnel.json")
    assert funnel["in"] == 4 and funnel["out"] == 2
    assert funnel["dropped"] == {"no wrong solution": 1, "no wrong step found": 1}


def test_a_last_step_that_is_wrong_keeps_its_stop_token(tmp_path, policy, chat):
    made = find(tmp_path, policy, chat, {"a": [(WRONG[: WRONG.index("\nStep 3")], 0.0)]})
    [row] = made.read().to_dicts()
    assert row["wrong_token_ids"][-1] == chat.eos and row["wrong"] == "Step 2: 3 + 1 = 5."


def test_a_token_that_belongs_to_both_sides_begins_the_step(chat):
    text = "one sentence without the letter z"
    ids = chat.encode_literal(text)
    for end in range(len(text) + 1):
        count = cut_tokens(chat, ids, text, end)
        begun = read_tokens(chat, ids[:count])
        assert text.startswith(begun) and len(begun) <= end
        assert count == len(ids) or len(read_tokens(chat, ids[: count + 1])) > end
    umlauts = chat.encode_literal("ä€ö")
    assert [cut_tokens(chat, umlauts, "ä€ö", end) for end in range(4)] == [0, 2, 5, 7]


def test_without_a_wrong_step_nothing_is_published(tmp_path, policy, chat):
    with pytest.raises(UserError, match=r"steps: of 1 prompt none is left.*\n.*steps=judged"):
        find(tmp_path, policy, chat, {"a": [(UNKNOWN, 0.0)]})


# ── pairs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def paired(tmp_path, policy, chat):
    """The stage `pair` on steps, with these continuations of each beginning."""

    def make(continued: list[tuple[str, float]], *words: str):
        found = find(tmp_path, policy, chat, {name: [(WRONG, 0.0)] for name in "abc"})
        rows = [
            (
                row["prompt_id"],
                [*row["prompt"], {"role": "assistant", "content": row["prefix"]}],
                [*chat.encode(row["prompt"], {}), *row["prefix_token_ids"]],
                f"{row['prompt_id']}-{number}",
                text,
                score,
            )
            for row in found.read().to_dicts()
            for number, (text, score) in enumerate(continued)
        ]
        samples, scores = write_answers(tmp_path / "go", chat, rows)
        cfg = composed(*MATH, "steps=default", "pair.dev={share: 0, min: 0, max_share: 0}", *words)
        return pair.run(
            cfg.pair.for_round(1, steps=cfg.steps.cut),
            tmp_path / "out",
            policy=policy,
            samples=[samples],
            scores=[scores],
            steps=found,
        )

    return make


def test_a_pair_is_one_right_and_one_wrong_step_after_the_same_beginning(paired, chat):
    lucky = "Step 2: 3 + 1 = 7.\nStep 3: So 4."
    continued = [("Step 2: 3 + 1 = 4.\nStep 3: So 4.", 1.0), ("Step 2: 3 + 1 = 6.", 0.0)]
    made = paired([*continued, (lucky, 1.0)])
    rows = made.read_train()
    assert rows.height == 3
    for row in rows.to_dicts():
        *asked, begun = row["prompt"]
        assert begun == {"role": "assistant", "content": "Step 1: 1 + 2 = 3.\n"}
        assert row["prompt_token_ids"] == [
            *chat.encode(asked, {}),
            *chat.encode_literal(begun["content"]),
        ]
        assert row["chosen"][-1]["content"] == "Step 2: 3 + 1 = 4.\n"
        assert row["rejected"][-1]["content"] == "Step 2: 3 + 1 = 5.\n"
        for side in ("chosen", "rejected"):
            assert read_tokens(chat, row[f"{side}_token_ids"]) == row[side][-1]["content"]
            assert row[f"{side}_token_ids"][-1] != chat.eos
        assert (row["chosen_score"], row["rejected_score"]) == (1.0, 0.0)
    counts = {"beginnings": 3, "continuations": 9, "right": 6, "right_by_a_true_step": 3}
    assert made.read_funnel()["steps"] == counts


def test_a_step_that_ends_the_solution_ends_with_its_stop_token(paired, chat):
    for row in paired([("Step 2: 3 + 1 = 4.", 1.0)]).read_train().to_dicts():
        assert row["chosen_token_ids"][-1] == chat.eos != row["rejected_token_ids"][-1]


def test_a_beginning_that_nobody_continues_rightly_makes_no_pair(paired):
    with pytest.raises(UserError, match="one usable sample"):
        paired([("Step 2: 3 + 1 = 6.", 0.0)])


def test_other_tokens_of_the_beginning_stop_here(paired, tmp_path, chat, monkeypatch):
    list_wrong = pair.step_pairs._list_wrong_steps

    def shorten(*given):
        for row in list_wrong(*given):
            yield {**row, "prompt_token_ids": row["prompt_token_ids"][:-1]}

    monkeypatch.setattr(pair.step_pairs, "_list_wrong_steps", shorten)
    monkeypatch.setattr(
        pair.step_pairs,
        "_cut_continuation",
        lambda cfg, chat, step, row, cut=pair.step_pairs._cut_continuation: {
            **(made := cut(cfg, chat, step, row)),
            "prompt_token_ids": made["prompt_token_ids"][:-1],
        },
    )
    with pytest.raises(UserError, match="the tokens of the answer's beginning do not read as its"):
        paired([("Step 2: 3 + 1 = 4.\nStep 3: So 4.", 1.0)])


@pytest.mark.model
def test_the_sampler_goes_on_from_the_beginning(tmp_path, policy, chat):
    found = find(tmp_path, policy, chat, {name: [(WRONG, 0.0)] for name in "abc"})
    request = composed(*MATH, "steps=default").sample.request_continuations(
        1, composed(*MATH, "steps=default", "steps.sampling.n=2").steps.sampling
    )
    changes = {"backend": transformers(4), "limits": {"prompt": 96, "completion": 16}}
    request = type(request).model_validate({**request.model_dump(), **changes})
    rows = sample.run(request, tmp_path / "go", policy=policy, prompts=found).read()
    assert rows.height == 6
    begun = {row["prompt_id"]: row for row in found.read().to_dicts()}
    for row in rows.to_dicts():
        beginning = begun[row["prompt_id"]]["prefix_token_ids"]
        *asked, begun_answer = row["prompt"]
        assert begun_answer == {"role": "assistant", "content": "Step 1: 1 + 2 = 3.\n"}
        assert row["prompt_token_ids"] == [*chat.encode(asked, {}), *beginning]
        assert row["setting"] == "continue" and row["asked_token_ids"] is None


# ── by a judge ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def judged(tmp_path, policy, chat, monkeypatch):
    """The stage with a judge that answers as a template tells it."""
    monkeypatch.setenv("JUDGE_KEY", KEY)

    def make(answer: str, solutions: dict, model: str = "judge", *words: str) -> Prompts:
        own = (HOUSE / "conf" / "steps" / "first_wrong.md").read_text()
        (tmp_path / "own.md").write_text(f"{own}\nanswer with {answer}\n")
        with fake_judge() as judge:
            given = [
                "steps=judged",
                f"steps.judge.engine.model={model}",
                f"steps.judge.engine.runtime.base_url={judge.url}",
                "steps.judge.engine.runtime.api_key_env=JUDGE_KEY",
                "steps.judge.engine.runtime.retries=0",
                f"steps.judge.runtime.verdicts={tmp_path / 'verdicts.sqlite'}",
                f"steps.judge.template={tmp_path / 'own.md'}",
            ]
            return find(tmp_path, policy, chat, solutions, *given, *words)

    return make


def test_a_judge_finds_what_no_equation_shows(judged, tmp_path):
    made = judged("B", {"a": [(UNKNOWN, 0.0)], "b": [(WRONG, 0.0)], "c": [(RIGHT, 1.0)]})
    rows = {row["sample_id"]: row for row in made.read().to_dicts()}
    assert rows["a-0"]["found_by"] == "judge"
    assert rows["a-0"]["wrong"] == "Step 2: five."
    assert rows["b-0"]["found_by"] == "3 + 1 = 5", "a rule costs nothing"
    cost = read_json(tmp_path / "steps" / "cost.json")
    assert cost["rows"] == 2 and cost["judge_requests"] == 1


def test_a_solution_without_a_wrong_step_is_dropped(judged):
    with pytest.raises(UserError, match="no wrong step found 1"):
        judged("0", {"a": [(UNKNOWN, 0.0)]})


def test_a_judge_without_verdicts_stops_the_stage_or_drops_its_prompts(judged, tmp_path):
    solutions = {"a": [(UNKNOWN, 0.0)], "b": [(WRONG, 0.0)]}
    with pytest.raises(StageError, match=r"1 of 1 verdict failed(.|\n)*steps\.judge\.max_failed"):
        judged("B", solutions, "garbage")
    made = judged("B", solutions, "garbage", "steps.judge.max_failed=1")
    assert made.read()["sample_id"].to_list() == ["b-0"]
    assert read_json(tmp_path / "steps" / "funnel.json")["dropped"] == {"no verdict": 1}


# ── the plan, and bad input ───────────────────────────────────────────────────────────────────────


def test_pairs_are_of_continuations_and_of_what_they_continue():
    plain, with_steps = (named(plan(composed(*MATH, *more))) for more in ([], ["steps=default"]))
    made = with_steps["pair@1"]
    assert made.inputs["steps"] is with_steps["steps@1"]
    [continued] = made.inputs["samples"]
    assert continued.inputs["prompts"] is with_steps["steps@1"]
    assert continued.config.limits.prompt == 2048 and continued.config.purpose == "steps"
    assert with_steps["steps@1"].inputs["samples"] != [continued]
    assert plain["pair@1"].config.steps is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*SMALL, "steps=default"], "pair.scorer=rules is of kind rules and knows no result"),
        ([*MATH, "steps=default", "pair.mix={on_policy: 0, offline: 1}"], "samples no solutions"),
        ([*MATH, "steps=default", "pair=demonstration"], "pairs are of the policy's own steps"),
        ([*MATH, "steps=default", "pair.edits.1=e.jsonl"], "edits are of whole answers"),
        ([*MATH, "steps=default", "revise=default"], "pairs of steps have no revised answers"),
        ([*MATH, "steps=default", "steps.split=sentences"], "steps.split"),
        ([*MATH, "steps=judged"], "steps.judge.engine.model"),
    ],
)
def test_what_cannot_be_cut_into_steps_is_refused(words, said):
    with pytest.raises(UserError) as error:
        composed(*words)
    assert re.search(said, str(error.value)), str(error.value)


def test_problems_without_results_are_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps({"prompt": f"sum {number}"}) + "\n" for number in range(900))
    (tmp_path / "problems.jsonl").write_text("".join(lines))
    steps_of = plan(composed(*MATH, "steps=default")).ancestors()
    with pytest.raises(UserError, match="reads the prompts' column answer, and no\n? ?prompt"):
        check_steps([step for step in steps_of if step.stage in ("prompts", "score")])
