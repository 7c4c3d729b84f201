"""The stage `gate`: the best model so far by its dev evaluation, and what points to it."""

import json

import pytest

from pipeline import store
from pipeline.artifacts import open_artifact, write_json
from pipeline.config import GateConfig
from pipeline.driver.outline import select_targets
from pipeline.errors import StageError, UserError
from pipeline.plan import plan
from pipeline.stages import gate
from tests.support.evals import answer, make_eval, model
from tests.support.house import SMALL, composed, fingerprints, named

CONFIG = GateConfig(scorer="rules", kl_budget=None, min_gain=0.0)
IDS = [f"p{i}" for i in range(8)]


def examined(root, **rounds):
    """Exams on dev: each round's score of every prompt (None: failed), and how far it moved, in
    nats."""
    evals = {}
    for name, (scores, nats) in rounds.items():
        of = model(root, "sft" if name == "sft" else "train", f"{len(evals):012x}")
        write_json(
            of.path / "manifest.json", {"files": [{"path": "weights", "size": 1, "sha256": name}]}
        )
        kl = [] if nats is None else [(key, nats - 20.0, -20.0) for key in IDS]
        answers = [answer(key, score) for key, score in zip(IDS, scores, strict=True)]
        evals[name.replace("_", "-")] = make_eval(of, answers, kl)
    return evals


def decided(root, cfg=CONFIG, **rounds):
    out = root / "gate" / f"{0:012x}"
    found = gate.run(cfg, out, evals=examined(root, **rounds))
    told = json.loads((out / "gate.json").read_text())
    assert open_artifact("gate", out) == found
    return told["chosen"], [row["outcome"] for row in told["candidates"]], out


def test_the_best_so_far_goes_on_even_if_it_is_an_earlier_one(tmp_path):
    rounds = {"sft": ([0.2] * 8, 0.0), "round_1": ([0.6] * 8, 1.0), "round_2": ([0.5] * 8, 2.0)}
    chosen, outcomes, out = decided(tmp_path, **rounds)
    assert (chosen, outcomes) == ("round-1", ["begins", "better", "not better"])
    assert open_artifact("gate", out).path.name == f"{1:012x}"
    chosen, outcomes, _ = decided(tmp_path, **rounds, round_3=([0.7] * 8, 2.0))
    assert (chosen, outcomes[-1]) == ("round-3", "better")


def test_sft_goes_on_where_no_round_is_better(tmp_path):
    chosen, _, out = decided(tmp_path, sft=([0.5] * 8, 0.0), round_1=([0.5] * 8, 1.0))
    assert chosen == "sft" and open_artifact("gate", out).path.parent.name == "sft"


def test_a_gain_too_small_or_a_model_too_far_is_passed_by(tmp_path):
    rounds = {"sft": ([0.2] * 8, 0.0), "round_1": ([0.3] * 8, 1.0), "round_2": ([0.9] * 8, 7.0)}
    careful = CONFIG.model_copy(update={"kl_budget": 5.0, "min_gain": 0.2})
    chosen, outcomes, _ = decided(tmp_path, careful, **rounds)
    assert (chosen, outcomes) == ("sft", ["begins", "not better", "too far"])


def test_models_are_compared_on_the_prompts_that_both_have_a_score_for(tmp_path):
    """On all its prompts round 1 has the higher mean, on those of both the lower one."""
    chosen, _, _ = decided(
        tmp_path, sft=([0.5] * 4 + [0.0] * 4, 0.0), round_1=([0.4] * 4 + [None] * 4, 1.0)
    )
    assert chosen == "sft"


def test_without_scores_or_the_kl_that_a_budget_needs_nothing_is_chosen(tmp_path):
    with pytest.raises(StageError, match="no answer of round-1"):
        decided(tmp_path, sft=([0.5] * 8, 0.0), round_1=([None] * 8, 1.0))
    with pytest.raises(UserError, match=r"gate\.kl_budget=5"):
        decided(
            tmp_path,
            GateConfig(scorer="rules", kl_budget=5, min_gain=0),
            sft=([0.5] * 8, 0),
            round_1=([1] * 8, None),
        )


def test_the_pointer_holds_its_target_s_content_and_keeps_its_files(tmp_path):
    evals, out = (
        examined(tmp_path, sft=([0.2] * 8, 0.0), round_1=([0.6] * 8, 1.0)),
        tmp_path / "gate" / f"{0:012x}",
    )
    target = gate.run(CONFIG, out, evals=evals).path
    before = (out / "model.json").read_text()
    assert store.list_bases(out) == [target.name]
    write_json(
        target / "manifest.json", {"files": [{"path": "weights", "size": 1, "sha256": "rebuilt"}]}
    )
    gate.run(CONFIG, out, evals=evals)
    assert (out / "model.json").read_text() != before


def test_the_next_round_and_the_report_go_on_from_what_the_gate_chose():
    steps = named(plan(composed("recipes=smoke", "gate=best")))
    assert steps["sample@2"].inputs["policy"] is steps["gate@1"]
    assert steps["train@2"].inputs["init"] is steps["gate@1"]
    assert steps["evaluate@report"].inputs["chosen"] is steps["gate@2"]
    assert list(steps["gate@1"].inputs["evals"]) == ["sft", "round-1"]
    assert list(steps["gate@2"].inputs["evals"]) == ["sft", "round-1", "round-2"]
    assert list(steps["evaluate@report"].inputs["evals"]) == ["base", "sft", "round-1", "round-2"]


def test_the_gate_reads_dev_and_the_scorers_of_training_alone():
    gold = ["+scorer@evaluate.score.scorers.short=length", "evaluate.score.scorers.short.gold=true"]
    last = named(plan(composed("recipes=smoke", "gate=best", *gold)))["gate@2"]
    parts = {
        part
        for step in last.ancestors()
        for _, source, part in step.edges()
        if source.stage == "prompts"
    }
    assert parts == {"train", "dev", "decontamination"}
    assert {tuple(s.config.scorers) for s in last.ancestors() if s.stage == "score"} == {("rules",)}


def test_a_gate_changes_nothing_before_it():
    without, gated = fingerprints(*SMALL), fingerprints(*SMALL, "gate=best")
    assert without.items() - gated.items() == {("evaluate@report", without["evaluate@report"])}


def test_a_gate_that_nobody_can_ask_is_refused():
    with pytest.raises(UserError, match=r"gate\.scorer=gold: score has no such scorer"):
        composed(*SMALL, "gate=best", "gate.scorer=gold")
    judge = ["+scorer@score.scorers.judge=pairwise", "score.scorers.judge.engine.model=m"]
    marked = [
        "score@evaluate.score=rules",
        "evaluate.scorer=rules",
        "gate=best",
        "gate.scorer=judge",
    ]
    with pytest.raises(
        UserError, match=r"gate\.scorer=judge compares a model's answers with each other"
    ):
        composed(*SMALL, *judge, *marked)


def test_a_stage_that_is_off_says_where_it_is_switched_on():
    with pytest.raises(
        UserError, match=r"until=gate: this plan has no stage gate(.|\n)*conf/gate/"
    ):
        select_targets(plan(composed(*SMALL)), "gate")
    assert [
        step.label for step in select_targets(plan(composed("recipes=smoke", "gate=best")), "gate")
    ] == [1]
