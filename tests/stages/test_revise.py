"""Revision: the policy's answer, a critique by a principle, a new answer, which is a sample of the
plain prompt."""

import json
import re

import polars as pl
import pytest

from pipeline.artifacts import Model, Samples
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import Limits, RevisionRequest, ServedModel
from pipeline.errors import StageError, UserError
from pipeline.plan import plan
from pipeline.preflight.servers import list_servers
from pipeline.sampling import collector, principles
from pipeline.stages import revise, sample
from tests.stages import test_sample
from tests.stages.test_sample import POLICY
from tests.support.house import SMALL, check_steps, composed, identity_of, named
from tests.support.servers import serving
from tests.support.tiny import tiny_model

PRINCIPLES = ["Be brief.", "Be kind.", "Be true."]
REVISED_OVER_FIRST = [
    "pair=by_source",
    "pair.strategy.chosen=revised",
    "pair.strategy.rejected=policy",
]
STRONG = ["+member@sample.pool.strong=checkpoint", "sample.pool.strong.model=./strong"]
SERVED = ["+baseline@revise.backend=served", "revise.backend.model=judge"]


def request(*words: str, **changes) -> RevisionRequest:
    cfg = composed(*SMALL, "backend=scripted", "revise=default", *words).revise.for_round(1)
    return cfg.model_copy(update={"principles": PRINCIPLES, **changes})


def draw(folder, prompts, policy: Model = POLICY, **changes) -> Samples:
    """Two settings, three samples of the one and one of the other."""
    return sample.run(test_sample.config(**changes), folder, policy=policy, prompts=prompts)


@pytest.fixture
def prompts(tmp_path):
    return test_sample.ask(tmp_path / "train", *(f"say {number} things" for number in range(20)))


def test_a_revised_answer_is_a_sample_of_the_plain_prompt(tmp_path, prompts):
    samples, cfg = draw(tmp_path / "first", prompts), request()
    rows = revise.run(cfg, tmp_path / "out", policy=POLICY, samples=samples).read()
    assert rows.schema == pl.Schema(collector.SAMPLE)
    first = samples.read("draw").unique("prompt_id", keep="first", maintain_order=True)
    for column in ("prompt_id", "prompt", "prompt_token_ids"):
        assert rows[column].to_list() == first[column].to_list()
    assert set(rows["setting"]) == {"revised"} and set(rows["policy"]) == {"0123456789ab"}
    assert not set(rows["sample_id"]) & set(samples.read()["sample_id"])
    assert not set(rows["completion"]) & set(samples.read()["completion"])


def test_the_model_sees_its_answer_the_critique_and_one_principle(tmp_path, prompts):
    samples, cfg = draw(tmp_path / "first", prompts), request()
    rows = revise.run(cfg, tmp_path / "out", policy=POLICY, samples=samples).read()
    first = dict(samples.read("draw").select("prompt_id", "completion").reverse().iter_rows())
    critiques = Samples(tmp_path / "out" / "scratch" / "turns" / "1").read()
    rewritten = Samples(tmp_path / "out" / "scratch" / "turns" / "2").read()
    drawn = set()
    for one, two in zip(
        critiques.iter_rows(named=True), rewritten.iter_rows(named=True), strict=True
    ):
        *_, answer, asked = one["prompt"]
        assert answer == {"role": "assistant", "content": first[one["prompt_id"]]}
        [principle] = [each for each in PRINCIPLES if asked["content"].endswith(f": {each}")]
        drawn.add(principle)
        assert two["prompt"][:-1] == [
            *one["prompt"],
            {"role": "assistant", "content": one["completion"]},
        ]
        assert two["prompt"][-1] == {"role": "user", "content": cfg.revision}
    assert drawn == set(PRINCIPLES)
    asked = dict(rewritten.select("prompt_id", "prompt_token_ids").iter_rows())
    assert all(row["asked_token_ids"] == asked[row["prompt_id"]] for row in rows.to_dicts())
    assert rows["token_ids"].to_list() == rewritten["token_ids"].to_list()


def test_both_turns_are_paid_for_and_a_prompt_counts_once(tmp_path, prompts):
    samples = draw(tmp_path / "first", prompts)
    revise.run(request(), tmp_path / "out", policy=POLICY, samples=samples)
    cost = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert (cost["completions"], cost["prompts"], cost["failed"]) == (40, 20, 0)


def test_killed_between_the_turns_it_comes_out_the_same(tmp_path, prompts, monkeypatch):
    samples, write = draw(tmp_path / "first", prompts), revise.write_requests
    whole = revise.run(request(), tmp_path / "whole", policy=POLICY, samples=samples).read()

    def be_killed(cfg, asked, *rest):
        if asked == cfg.revision:
            raise KeyboardInterrupt
        return write(cfg, asked, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(revise, "write_requests", be_killed)
        with pytest.raises(KeyboardInterrupt):
            revise.run(request(), tmp_path / "out", policy=POLICY, samples=samples)
    before = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("samples/*.parquet")
    }
    again = revise.run(request(), tmp_path / "out", policy=POLICY, samples=samples).read()
    assert before and again.equals(whole)
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())


def test_a_conversation_that_does_not_fit_is_dropped_with_its_reason(tmp_path, prompts):
    samples = draw(tmp_path / "first", prompts)
    lengths = samples.read("draw")["completion"].str.split(" ").list.len()
    cfg = request(limits=Limits(prompt=int(lengths.median()) + 40, completion=9))
    rows = revise.run(cfg, tmp_path / "out", policy=POLICY, samples=samples).read()
    dropped = pl.read_parquet(tmp_path / "out" / "dropped.parquet")
    assert 0 < rows.height < 20 and rows.height + dropped.height == 20
    assert set(dropped["reason"]) == {"prompt_too_long"}


# ── the plan ──────────────────────────────────────────────────────────────────────────────────────


def test_revised_answers_are_scored_and_paired_and_other_steps_stay_as_they_are():
    without, steps = (named(plan(composed(*SMALL, *more))) for more in ([], ["revise=default"]))
    revised, pair = steps["revise@1"], steps["pair@1"]
    assert pair.inputs["pool"] == {"revised": [revised]}
    assert pair.inputs["samples"] == [steps["sample@1"]]
    scored = {id(score.inputs["samples"]): score for score in pair.inputs["scores"]}
    assert set(scored) == {id(revised), id(steps["sample@1"])}
    assert scored[id(revised)].label_text == "round 1 revised"
    assert revised.inputs == {"policy": steps["sft@0"], "samples": steps["sample@1"]}
    assert identity_of(steps["sample@1"]) == identity_of(without["sample@1"])


def test_one_answer_each_needs_no_score_to_be_paired():
    words = ["revise=default", "sample.settings.draw.n=1", *REVISED_OVER_FIRST]
    steps = named(plan(composed(*SMALL, *words)))
    assert "score@1" not in steps and "scores" not in steps["pair@1"].inputs
    assert steps["pair@1"].inputs["pool"] == {"revised": [steps["revise@1"]]}


def test_the_revised_answers_alone_are_demonstrations():
    words = ["revise=default", "init=best_of_n", "best_of_n=default", "best_of_n.answers=revised"]
    steps = named(plan(composed(*SMALL, *words)))
    assert steps["sft@1"].inputs["samples"] == [steps["revise@1"]]
    [scores] = steps["sft@1"].inputs["scores"]
    assert scores.inputs["samples"] is steps["revise@1"]
    assert steps["train@1"].inputs["init"] is steps["sft@1"]


def test_principles_are_what_a_file_says(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("# of the house\nBe brief.\n\n  Be kind. \n")
    words = [*SMALL, "revise=default", f"revise.principles={mine}"]
    assert principles.read_principles(composed(*words).revise, "revise") == [
        "Be brief.",
        "Be kind.",
    ]
    before = identity_of(named(plan(composed(*words)))["revise@1"])
    mine.write_text("Be brief.\n")
    assert identity_of(named(plan(composed(*words)))["revise@1"]) != before


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────


def test_a_file_without_principles_is_refused_before_anything_is_built(tmp_path):
    empty = tmp_path / "none.txt"
    empty.write_text("\n# nothing yet\n")
    step = named(plan(composed(*SMALL, "revise=default", f"revise.principles={empty}")))["revise@1"]
    with pytest.raises(UserError, match=r"revise\.principles=.*none\.txt: it lists no principle"):
        check_steps([step])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["revise.setting=drawn"], r"revise\.setting=drawn: nothing is sampled by this setting"),
        (["revise.principles=[]"], r"revise\.principles"),
        (["revise.sampling.n=2"], r"an answer is revised once; give revise\.sampling\.n=1"),
        (["revise.critique=Improve it."], r"revise\.critique.*name the principle"),
        (["revise.revision='Of $law'"], r"revise\.revision.*\$principle alone"),
        (SERVED, r"revise\.backend\.runtime\.base_url"),
        (
            ["pair=by_source", "pair.strategy={chosen: policy, rejected: strong}", *STRONG],
            "revised answers are in no pair",
        ),
        (["score=pairwise", "score.scorers.pairwise.engine.model=m"], "revised ones are another"),
        (["pair.mix.on_policy=0", "pair.mix.offline=1"], "there are no samples to revise"),
    ],
)
def test_what_cannot_be_revised_is_refused(words, said):
    with pytest.raises(UserError) as error:
        composed(*SMALL, "revise=default", *words)
    assert re.search(said, str(error.value)), str(error.value)


@pytest.mark.parametrize(
    "words",
    [["init=best_of_n", "best_of_n=default", "best_of_n.answers=revised"], REVISED_OVER_FIRST],
)
def test_without_revision_nothing_is_revised(words):
    with pytest.raises(UserError, match="nothing is revised. Give revise=default"):
        composed(*SMALL, *words)


# ── by another model, from a server ───────────────────────────────────────────────────────────────


def served(url: str) -> ServedModel:
    words = [*SERVED, f"revise.backend.runtime.base_url={url}", "revise.backend.runtime.retries=0"]
    words += ["revise.backend.runtime.concurrency=1"]
    backend = composed(*SMALL, "revise=default", *words).revise.backend
    assert isinstance(backend, ServedModel)
    return backend


def test_the_server_is_asked_for_by_its_own_knob():
    words = [*SERVED, "revise.backend.runtime.base_url=http://localhost:1/v1"]
    step = named(plan(composed(*SMALL, "revise=default", *words)))["revise@1"]
    assert [knob for knob, _ in list_servers(step)] == ["revise.backend"]


def answer_as_judge(body):
    said = f" better: {len(body['messages'])}"
    return {"message": {"content": said}, "finish_reason": "stop"}


@pytest.mark.model
def test_a_judge_s_answers_are_written_in_the_policy_s_tokens(tmp_path, prompts):
    policy = tiny_model(tmp_path / "store" / "sft" / "0123456789ab", context=2048)
    samples = draw(tmp_path / "first", prompts)
    with serving(answer_as_judge) as server:
        cfg = request(backend=served(server.base_url))
        rows = revise.run(cfg, tmp_path / "out", policy=policy, samples=samples).read()
    chat = ModelTokenizer(policy)
    assert set(rows["completion"]) == {" better: 5"} and rows["logprob"].null_count() == 20
    for row in rows.iter_rows(named=True):
        assert row["token_ids"][-1] in chat.stop_ids
        assert chat.tokenizer.decode(row["token_ids"][:-1]) == row["completion"]


@pytest.mark.model
def test_a_server_that_is_not_there_stops_the_stage_with_its_knob(tmp_path, prompts):
    policy = tiny_model(tmp_path / "store" / "sft" / "0123456789ab", context=2048)
    samples, cfg = (
        draw(tmp_path / "first", prompts),
        request(backend=served("http://127.0.0.1:1/v1")),
    )
    with pytest.raises(StageError, match=r"revise\.runtime\.max_failed=0\.01"):
        revise.run(cfg, tmp_path / "out", policy=policy, samples=samples)
    with serving(answer_as_judge, key="another") as server:
        cfg = request(backend=served(server.base_url))
        with pytest.raises(UserError, match=r"^revise\.backend\.runtime\.base_url="):
            revise.run(cfg, tmp_path / "other", policy=policy, samples=samples)
