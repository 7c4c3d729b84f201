"""Other models in the table: asked the same prompts, by a folder's own template or by name from a
server."""

import json

import polars as pl
import pytest

from pipeline.artifacts import Prompts, read_table, write_table
from pipeline.config import AnswersFile, Checkpoint, EvaluateConfig, ServedModel
from pipeline.config.cross_checks import find_mismatches
from pipeline.data.prompts import PROMPT_ROW
from pipeline.data.tool_turns import add_tools, pack_messages
from pipeline.errors import StageError, UserError
from pipeline.plan import plan
from pipeline.stages import base, sample
from tests.stages import test_sample
from tests.stages.test_evaluate import Run, scored
from tests.stages.test_evaluate import named as row_of
from tests.support.house import SMALL, check_steps, composed, identity_of, named
from tests.support.servers import serving
from tests.support.tiny import tiny_model
from tests.support.tools import TOOL_CHAT, WEATHER, ask, call, calling, result, write_call

RIVAL = ["+baseline@evaluate.baselines.rival=served", "evaluate.baselines.rival.model=served"]
RIVAL += ["evaluate.baselines.rival.runtime.base_url=http://127.0.0.1:1/v1"]
OLD = [
    "+baseline@evaluate.baselines.old=checkpoint",
    "evaluate.baselines.old.model=owner/old",
    f"evaluate.baselines.old.revision={'a' * 40}",
]
JUDGE = ["+duel@evaluate.duels.judge=default", "evaluate.duels.judge.engine.model=judge"]


@pytest.fixture(scope="module")
def cfg():
    return composed(*SMALL, *RIVAL, *OLD, *JUDGE)


def of_evaluation(cfg, **changes):
    """The same config with another evaluation."""
    return cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update=changes)})


def identities(cfg):
    return {name: identity_of(step) for name, step in named(plan(cfg)).items()}


def test_another_model_has_an_exam_of_its_own_and_changes_no_other(cfg):
    before, after = identities(of_evaluation(cfg, baselines={})), identities(cfg)
    assert {name for name in before if after[name] != before[name]} == {"evaluate@report"}
    steps = named(plan(cfg))
    for name, kind in (("rival", ServedModel), ("old", Checkpoint)):
        model, drawn = steps[f"base@test {name}"], steps[f"sample@test {name}"]
        assert isinstance(model.config, kind) and drawn.inputs["policy"] is model
        assert set(drawn.config.settings) == {"answer"}, "no draws for a KL that there is not"
        assert f"reference@test {name}" not in steps
    assert steps["base@test rival"].inputs["like"] is steps["sft@0"]
    assert steps["sample@test rival"].config.backend == steps["base@test rival"].config
    assert steps["sample@test old"].config.backend == steps["sample@test sft"].config.backend
    assert list(steps["evaluate@report"].inputs["evals"]) == [
        "sft",
        "round-1",
        "rival",
        "old",
        "control",
    ]


def test_where_a_server_stands_is_no_identity_and_whose_weights_it_holds_is(cfg):
    def of(**changes):
        rival = cfg.evaluate.baselines["rival"].model_copy(update=changes)
        return identities(of_evaluation(cfg, baselines={"rival": rival}))["sample@test rival"]

    moved = cfg.evaluate.baselines["rival"].runtime.model_copy(
        update={"base_url": "http://elsewhere/v1"}
    )
    assert of() == of(runtime=moved)
    assert of() != of(revision="tuesday")


def test_others_meet_sft_and_the_last_round_in_every_duel(cfg):
    steps = named(plan(cfg.model_copy(update={"rounds": 2})))
    fought = {
        name.removeprefix("duel@test ")
        for name in steps
        if name.startswith("duel") and "old" not in name
    }
    rounds = {"round-1 sft", "round-2 sft", "round-2 round-1", "control sft"}
    assert fought == rounds | {"rival sft", "rival round-2"}


def test_a_sweep_s_points_are_not_compared_with_others_on_dev(cfg):
    assert "base@test rival" not in named(plan(of_evaluation(cfg, split="dev")))


@pytest.mark.parametrize("name", ["sft", "control", "round-1", "best-of-4"])
def test_a_name_that_the_table_has_already_is_refused(cfg, name):
    with pytest.raises(
        ValueError, match=rf"baselines\.{name}: the table already has a row of this name"
    ):
        EvaluateConfig(
            **{**dict(cfg.evaluate), "baselines": {name: cfg.evaluate.baselines["rival"]}}
        )


def test_what_a_server_may_not_know_is_not_asked_of_it(cfg):
    settings = {"answer": cfg.evaluate.sample.settings["answer"].model_copy(update={"min_p": 0.1})}
    bent = of_evaluation(cfg, sample=cfg.evaluate.sample.model_copy(update={"settings": settings}))
    assert any(
        "evaluate.baselines.rival: not every server knows min_p" in fault
        for fault in find_mismatches(bent)
    )


def test_a_key_that_is_not_there_is_said_before_anything_is_built(cfg, monkeypatch):
    monkeypatch.delenv("RIVAL_KEY", raising=False)
    rival = cfg.evaluate.baselines["rival"]
    locked = rival.model_copy(
        update={"runtime": rival.runtime.model_copy(update={"api_key_env": "RIVAL_KEY"})}
    )
    step = named(plan(of_evaluation(cfg, baselines={"rival": locked})))["sample@test rival"]
    with pytest.raises(
        UserError, match=r"evaluate\.baselines\.rival\.runtime\.api_key_env=RIVAL_KEY"
    ):
        check_steps([step])


def test_another_model_is_a_row_with_differences_and_contests_and_no_kl(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(0.5)).add("round-1", scored(0.7)).add("rival", scored(0.9))
    report = run.evaluate()
    assert row_of(report["differences"], model="rival")["mean"] == pytest.approx(0.4)
    met = [(duel["a"], duel["b"], duel["wins"]) for duel in report["duels"] if duel["a"] == "rival"]
    assert met == [("rival", "sft", 60), ("rival", "round-1", 60)]
    kl = row_of(report["models"], name="rival")["kl"]
    assert kl["mean"] is None and "whose tokens may differ from sft's" in kl["why"]
    assert "rival" not in {row["model"] for row in report["missing"]}
    assert report["verdict"]["better"] == "yes", (
        "the question is still whether round-1 is better than sft"
    )


# ── by name, from a server ────────────────────────────────────────────────────────────────────────


def chat(body):
    """Repeats what it was asked, with two seeds apart; the last of the asked gets no text at
    all."""
    [question] = body["messages"]
    assert set(body) == {
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "reasoning_effort",
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 500}  # most of them thought and never shown
    if "9 facts" in question["content"]:
        return {"message": {"content": None}, "finish_reason": "content_filter", "usage": usage}
    said = f"  Wohl:\n\u00e4 {question['content']} <s>"
    return {"message": {"content": said}, "finish_reason": "stop", "usage": usage}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "0123456789ab")


def served(url, **runtime):
    known = {"api_key_env": None, "concurrency": 4, "retries": 0, "timeout": 60.0}
    prices = {"prices": {"input": 1.0, "output": 3.0}}
    body = {"reasoning_effort": "low"}
    return ServedModel(
        kind="served",
        model="m",
        revision=None,
        body=body,
        runtime={"base_url": url, **known, **prices, **runtime},
    )


@pytest.mark.model
def test_what_a_server_says_comes_through_to_the_letter_and_is_measured_in_sft_s_tokens(
    sft, tmp_path
):
    prompts = test_sample.ask(
        tmp_path / "test", *(f"name {number} facts about the river" for number in range(10))
    )
    with serving(chat) as server:
        cfg = served(server.base_url)
        rival = base.run(cfg, sft.path.parent.parent / "base" / "abcabcabcabc", like=sft)
        runtime = {"blocks": 1, "workers": 3, "max_failed": 0.5}
        limits = {"prompt": 64, "completion": 100}
        asked = test_sample.config(backend=dict(cfg), limits=limits, runtime=runtime)
        rows = sample.run(asked, tmp_path / "out", policy=rival, prompts=prompts).read()
    lost = read_table(tmp_path / "out" / "failed.parquet")
    assert rows.height == 36 and lost.height == 4
    assert lost["reason"].unique().to_list() == [
        "the server ended it with content_filter and gave no text"
    ]
    for row in rows.iter_rows(named=True):
        assert row["completion"] == f"  Wohl:\n\u00e4 {row['prompt'][0]['content']} <s>"
        assert row["logprob"] is None and row["policy"] == "abcabcabcabc"
    assert json.loads((rival.path / "model.json").read_text())["base"] == "sft/0123456789ab"
    assert not list(rival.path.rglob("*.safetensors")), "a measure is no copy of a model"
    stop = {"draw": {**test_sample.CONFIG["settings"]["draw"], "stop": [" facts", "never"]}}
    with serving(chat) as server:
        asked = test_sample.config(
            backend=dict(served(server.base_url)), limits=limits, runtime=runtime, settings=stop
        )
        cut = sample.run(asked, tmp_path / "cut", policy=rival, prompts=prompts).read()
    assert set(cut["stop_string"]) == {" facts"} and not any(
        "facts" in said for said in cut["completion"]
    )
    assert all(said.startswith("  Wohl:\n\u00e4 name ") for said in cut["completion"])
    money = json.loads((tmp_path / "out" / "cost.json").read_text())["money"]
    assert money == pytest.approx(40 * (10 + 3 * 500) / 1e6), (
        "also for what it thought, and for what it withheld"
    )


@pytest.mark.model
def test_a_key_that_a_server_does_not_take_is_named_by_the_other_s_own_knob(sft, tmp_path):
    with serving(chat, key="another") as server:
        cfg = served(server.base_url)
        rival = base.run(cfg, sft.path.parent.parent / "base" / "defdefdefdef", like=sft)
        asked = test_sample.config(backend=dict(cfg), limits={"prompt": 64, "completion": 9})
        prompts = test_sample.ask(tmp_path / "test", "name a river")
        said = (
            r"^evaluate\.baselines\.rival\.runtime\.base_url=(.|\n)*"
            r" name it as evaluate\.baselines\.rival\.runtime\.api_key_env="
        )
        with pytest.raises(UserError, match=said):
            sample.run(
                asked,
                tmp_path / "out",
                policy=rival,
                prompts=prompts,
                knob="evaluate.baselines.rival",
            )


def serve_calls(body):
    """Calls the one tool that it is offered, and tears the arguments of the third city."""
    [tool] = body["tools"]
    assert [message["role"] for message in body["messages"]] == [
        "user",
        "assistant",
        "tool",
        "user",
    ]
    before = body["messages"][1]["tool_calls"][0]
    assert before["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert body["messages"][2]["tool_call_id"] == before["id"]
    city = body["messages"][-1]["content"].removeprefix("Is it warm in ").rstrip("?")
    arguments = f'{{"city": "{city}"}}'[: 9 if city == "Bern" else None]
    function = {"name": tool["function"]["name"], "arguments": arguments}
    message = {"content": None, "tool_calls": [{"type": "function", "function": function}]}
    return {"message": message, "finish_reason": "tool_calls"}


@pytest.mark.model
def test_a_server_gets_tools_by_its_api_and_its_calls_become_text(tmp_path):
    sft = tiny_model(tmp_path / "store" / "sft" / "0123456789ab", template=TOOL_CHAT, context=1024)
    talk = pack_messages([ask("Rome"), calling(call("Rome")), result("21")])
    rows = [
        {
            "prompt_id": city,
            "prompt": add_tools([*talk, ask(city)], [WEATHER]),
            "columns": "{}",
        }
        for city in ("Oslo", "Bern")
    ]
    schema = {name: PROMPT_ROW[name] for name in ("prompt_id", "prompt", "columns")}
    write_table(tmp_path / "test" / "prompts.parquet", pl.DataFrame(rows, schema=schema))
    with serving(serve_calls) as server:
        cfg = served(server.base_url).model_copy(update={"body": {}})
        rival = base.run(cfg, tmp_path / "store" / "base" / "abcabcabcabc", like=sft)
        runtime = {"blocks": 1, "workers": 1, "max_failed": 0.6}
        limits = {"prompt": 600, "completion": 100}
        asked = test_sample.config(backend=dict(cfg), limits=limits, runtime=runtime)
        prompts = Prompts(tmp_path / "test")
        drawn = sample.run(asked, tmp_path / "out", policy=rival, prompts=prompts).read()
    assert set(drawn["completion"]) == {write_call("Oslo")}
    assert set(drawn["finish_reason"]) == {"stop"}
    lost = read_table(tmp_path / "out" / "failed.parquet")
    assert set(lost["prompt_id"]) == {"Bern"}
    assert set(lost["reason"]) == {"the arguments of a call of get_weather are not a JSON object"}


# ── by published answers ──────────────────────────────────────────────────────────────────────────

GIVEN = ["+baseline@evaluate.baselines.paper=answers", "evaluate.baselines.paper.file=outputs.json"]


def test_published_answers_are_a_row_that_meets_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs.json").write_text("[]")
    steps = named(plan(composed(*SMALL, *GIVEN, *JUDGE)))
    assert steps["base@test paper"].inputs["like"] is steps["sft@0"]
    samples = steps["sample@test paper"]
    assert samples.config.backend == steps["base@test paper"].config
    assert samples.knob == "evaluate.baselines.paper"
    assert {name for name in steps if name.startswith("duel@test paper")} == {
        "duel@test paper sft",
        "duel@test paper round-1",
    }
    before = identity_of(samples)
    (tmp_path / "outputs.json").write_text("[ ]")
    assert identity_of(named(plan(composed(*SMALL, *GIVEN, *JUDGE)))["sample@test paper"]) != before


@pytest.mark.model
def test_published_answers_come_through_to_the_letter_and_a_missing_one_is_counted(sft, tmp_path):
    questions = [f"name {number} facts about the river" for number in range(10)]
    prompts = test_sample.ask(tmp_path / "test", *questions)
    rows = [{"instruction": each, "output": f" Wohl: {each}\n"} for each in questions[:9]]
    (tmp_path / "outputs.json").write_text(json.dumps(rows))
    cfg = AnswersFile(kind="answers", file=str(tmp_path / "outputs.json"), questions=None)
    paper = base.run(cfg, sft.path.parent.parent / "base" / "abcabcabcabd", like=sft)
    runtime = {"blocks": 1, "workers": 1, "max_failed": 0.5}
    limits = {"prompt": 64, "completion": 100}
    asked = test_sample.config(backend=dict(cfg), limits=limits, runtime=runtime)
    made = sample.run(asked, tmp_path / "out", policy=paper, prompts=prompts).read()
    texts = {(row["prompt"][-1]["content"], row["completion"]) for row in made.to_dicts()}
    assert texts == {(row["instruction"], row["output"]) for row in rows}
    assert set(made["finish_reason"]) == {"stop"}
    lost = read_table(tmp_path / "out" / "failed.parquet")
    assert lost["reason"].unique().to_list() == ["outputs.json does not answer this prompt"]


@pytest.mark.model
def test_answers_to_other_questions_are_refused(sft, tmp_path):
    prompts = test_sample.ask(tmp_path / "test", "a question of this evaluation")
    (tmp_path / "outputs.json").write_text('[{"instruction": "another", "output": "x"}]')
    cfg = AnswersFile(kind="answers", file=str(tmp_path / "outputs.json"), questions=None)
    paper = base.run(cfg, sft.path.parent.parent / "base" / "abcabcabcabe", like=sft)
    runtime = {"blocks": 1, "workers": 1, "max_failed": 1.0}
    asked = test_sample.config(backend=dict(cfg), runtime=runtime)
    with pytest.raises(StageError, match="none of its 1 questions is among the prompts"):
        sample.run(
            asked, tmp_path / "out", policy=paper, prompts=prompts, knob="evaluate.baselines.paper"
        )
