"""Identity: what is rebuilt when something changes. Toy stages through the real runner."""

import json
from pathlib import Path

import pytest

from pipeline.driver.outline import select_targets
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.step import Step, has_floating_revision
from tests.support.house import SMALL, Toys, composed, fingerprints, named

GOLDEN = Path(__file__).parent / "golden" / "smoke.json"


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if after.get(name) != before[name]}


def test_beta_leaves_the_first_round_s_data_alone():
    before, after = fingerprints("recipes=smoke"), fingerprints("recipes=smoke", "train.beta=0.3")
    first = {f"{stage}@1" for stage in ("sample", "score", "pair", "reference")}
    assert not first & changed(before, after)
    assert "train@1" in changed(before, after)
    assert {"sample@2", "train@2", "sample@test round-1", "evaluate@report"} <= changed(
        before, after
    )
    assert not any(name.endswith(("test base", "test sft")) for name in changed(before, after))


def test_a_third_round_builds_only_itself_its_exam_and_the_evaluation():
    two, three = fingerprints("recipes=smoke"), fingerprints("recipes=smoke", "rounds=3")
    assert changed(two, three) == {"evaluate@report"}
    assert set(three) - set(two) == {
        *(f"{stage}@3" for stage in ("sample", "score", "pair", "reference", "train")),
        *(f"{stage}@test round-3" for stage in ("sample", "score", "reference")),
    }


def test_runtime_is_outside_identity():
    assert fingerprints("recipes=smoke") == fingerprints(
        "recipes=smoke",
        "train.runtime.micro_batch=2",
        "sample.backend.runtime.max_sequences=3",
        "reference.runtime.batch_tokens=64",
    )


def test_spelling_of_a_number_is_outside_identity():
    assert fingerprints("recipes=smoke", "train.learning_rate=1e-6") == fingerprints(
        "recipes=smoke", "train.learning_rate=0.000001"
    )


def test_a_prompt_file_enters_by_content_not_by_place(tmp_path):
    def of(name: str, text: str) -> dict[str, str]:
        (tmp_path / name).write_text(text)
        return fingerprints(*SMALL[1:], "score=rules", f"prompts.path={tmp_path / name}")

    assert of("a.jsonl", '{"prompt": "one"}') == of("b=c.jsonl", '{"prompt": "one"}')
    assert "prompts@0" in changed(
        of("a.jsonl", '{"prompt": "one"}'), of("a.jsonl", '{"prompt": "two"}')
    )


def test_the_smoke_plan_has_the_fingerprints_it_had():
    """A changed fingerprint rebuilds every store: decide it, then write the new ones down."""
    assert fingerprints("recipes=smoke") == json.loads(GOLDEN.read_text())


def test_without_reference_neither_refer_nor_its_edge_is_planned():
    cfg = composed("recipes=smoke")
    without = cfg.train.model_copy(
        update={"reference_logps": "none"}
    )  # no objective of today has none
    steps = named(plan(cfg.model_copy(update={"train": without})))
    assert not {"reference@1", "reference@2"} & set(steps)
    assert {name for name, _, _ in steps["train@1"].edges()} == {"init", "pairs.0", "dev"}


def test_values_computed_as_it_goes_need_no_refer_step():
    steps = named(plan(composed("recipes=smoke", "train.reference_logps=online")))
    assert not {"reference@1", "reference@2"} & set(steps)
    assert steps["train@1"].inputs["reference"] is steps["sft@0"]


def test_init_and_reference_name_the_models_they_say():
    steps = named(plan(composed("recipes=smoke", "init=previous", "reference.model=sft")))
    assert steps["train@2"].inputs["init"] is steps["train@1"]
    assert steps["train@2"].inputs["reference"] is steps["sft@0"]
    steps = named(
        plan(composed("recipes=smoke", "init=sft", "reference.model=previous", "train_on=all"))
    )
    assert steps["train@2"].inputs["init"] is steps["sft@0"]
    assert steps["train@2"].inputs["reference"] is steps["train@1"]
    assert steps["train@2"].inputs["pairs"] == [steps["pair@1"], steps["pair@2"]]
    assert [each.config for each in steps["train@2"].inputs["logps"]] == [
        steps["reference@2"].config
    ] * 2


def test_what_a_round_draws_from_is_what_was_examined_after_the_round_before():
    steps = named(plan(composed("recipes=smoke")))
    for drawn, examined in (("sample@1", "sample@test sft"), ("sample@2", "sample@test round-1")):
        assert steps[drawn].inputs["policy"] is steps[examined].inputs["policy"]


def test_base_none_starts_the_report_at_sft():
    steps = named(plan(composed(*SMALL)))
    assert "base@0" not in steps
    assert list(steps["evaluate@report"].inputs["evals"]) == ["sft", "round-1", "control"]


def test_a_judge_that_compares_makes_pairs_while_others_mark_the_dev_exams():
    judge = [
        "+scorer@score.scorers.judge=pairwise",
        "score.scorers.judge.engine.model=m",
        "pair.scorer=judge",
    ]
    words = ["recipes=smoke", "evaluate.split=dev", "evaluate.scorer=rules", *judge]
    with pytest.raises(
        UserError, match=r"score\.scorers\.judge compares.*\+score@evaluate\.dev_score=rules"
    ):
        composed(*words)
    steps = named(plan(composed(*words, "+score@evaluate.dev_score=rules")))
    assert set(steps["score@1"].config.scorers) == {"judge", "rules"}
    assert set(steps["score@dev sft"].config.scorers) == {"rules"}
    gold = ["+score@evaluate.dev_score=rules", "evaluate.dev_score.scorers.rules.gold=true"]
    with pytest.raises(
        UserError,
        match=r"evaluate\.dev_score\.scorers\.rules\.gold=true: a gold scorer scores test",
    ):
        composed(*words, *gold)


def test_exams_on_dev_read_dev_and_the_training_scorers():
    evaluate = named(plan(composed("recipes=smoke", "evaluate.split=dev")))["evaluate@report"]
    parts = {part for _, step, part in evaluate.edges() if step.stage == "prompts"}
    assert parts == {"dev"}


def test_rows_around_training_are_sft_in_seeds_of_their_own_and_change_no_other_exam():
    more = ["evaluate.best_of=4", "evaluate.prompted={system: Be brief., few_shot: []}"]
    without, whole = fingerprints(*SMALL, "evaluate.control=false"), fingerprints(*SMALL, *more)
    assert changed(without, whole) == {"evaluate@report"}
    steps = named(plan(composed(*SMALL, *more)))
    drawn = [steps[f"sample@test {name}"] for name in ("control", "best-of-4", "prompted")]
    assert [each.config.purpose for each in drawn] == ["control", "best-of", "prompted"]
    assert [each.config.settings["answer"].n for each in drawn] == [1, 4, 1]
    assert drawn[2].config.settings["answer"].system == "Be brief."
    assert all(
        each.inputs["policy"] is steps["sft@0"] and set(each.config.settings) == {"answer"}
        for each in drawn
    )
    best = steps["evaluate@report"].inputs["evals"]["best-of-4"]["scores"]
    assert (best.config.best_by, best.inputs["best"].config) == ("rules", composed(*SMALL).score)


def test_on_dev_nothing_is_drawn_again():
    evals = named(plan(composed(*SMALL, "evaluate.split=dev", "evaluate.best_of=4")))[
        "evaluate@report"
    ].inputs["evals"]
    assert list(evals) == ["sft", "round-1"]


def test_a_floating_hub_revision_marks_everything_after_it():
    steps = named(plan(composed(*SMALL, "sft.revision=null")))
    assert has_floating_revision(steps["train@1"]) and not has_floating_revision(steps["prompts@0"])
    assert not has_floating_revision(named(plan(composed(*SMALL)))["train@1"])


def test_two_more_seeds_add_two_trainings_and_their_exams():
    words = [*SMALL, "benchmark=ifeval"]
    one, three = fingerprints(*words), fingerprints(*words, "seeds=3")
    assert changed(one, three) == {"evaluate@report"}
    assert set(three) - set(one) == {
        f"{stage}@{split}round-1-seed-{seed}"
        for stage, split in (
            ("train", ""),
            *((s, "test ") for s in ("sample", "score", "reference")),
        )
        for seed in (43, 44)
    }
    assert fingerprints(*words, "seeds=1") == one


def test_a_seed_changes_a_training_s_seed_and_that_of_its_answers_and_no_input():
    steps = named(plan(composed(*SMALL, "seeds=2", "rounds=2")))
    first, other = steps["train@2"], steps["train@round-2-seed-43"]
    assert other.inputs == first.inputs and "train@round-1-seed-43" not in steps
    assert other.config == first.config.model_copy(update={"seed": 43})
    answers = steps["sample@test round-2-seed-43"]
    assert (answers.config.seed, answers.inputs["policy"]) == (43, other)
    alone = named(plan(composed(*SMALL, "rounds=2", "train.seed=43")))["train@2"].config
    assert other.config == alone, "what a user gets by train.seed=43"


def test_the_seed_after_the_last_is_the_first():
    steps = named(plan(composed(*SMALL, "seed=4294967295", "seeds=2")))
    assert "train@round-1-seed-0" in steps


def test_a_gate_and_a_report_on_dev_read_the_first_seed():
    steps = named(plan(composed(*SMALL, "seeds=3", "gate=best", "evaluate.split=dev")))
    assert list(steps["gate@1"].inputs["evals"]) == ["sft", "round-1"]
    report = steps["evaluate@report"].inputs
    assert list(report["replicates"]) == ["round-1-seed-43", "round-1-seed-44"]
    assert report["chosen"] is steps["gate@1"]


def test_an_input_that_is_no_step_is_refused():
    with pytest.raises(TypeError, match="samples"):
        list(Step("score", composed(*SMALL).score, samples="store/sample/abc").edges())  # type: ignore[arg-type]


@pytest.mark.long
def test_the_second_run_builds_nothing_and_a_third_round_only_its_own(toys):
    assert len(toys.built(toys.run(*SMALL))) == 16
    assert toys.built(toys.run(*SMALL, "train.runtime.micro_batch=2")) == []
    built = toys.built(toys.run(*SMALL, "rounds=2"))
    first = [f"{stage} round 2" for stage in ("sample", "score", "pair", "reference", "train")]
    assert built[:6] == [*first, "sample test round-2"] and built[8:] == ["evaluate report"]
    assert set(built[6:8]) == {"reference test round-2", "score test round-2"}, "side by side"


@pytest.mark.long
def test_more_seeds_build_their_own_trainings_alone(toys):
    toys.run(*SMALL)
    built = toys.built(toys.run(*SMALL, "seeds=2"))
    assert sorted(built) == [
        "evaluate report",
        "reference test round-1-seed-43",
        "sample test round-1-seed-43",
        "score test round-1-seed-43",
        "train round-1-seed-43",
    ]
    assert toys.built(toys.run(*SMALL, "seeds=2", "until=pair")) == []


def test_until_train_means_every_seed_of_the_last_round():
    def list_targets(until, *words):
        last = plan(composed(*SMALL, "seeds=3", *words))
        return [step.label for step in select_targets(last, until)]

    every = [1, "round-1-seed-43", "round-1-seed-44"]
    assert list_targets("train") == list_targets("train@1") == every
    assert list_targets("train@round-1-seed-44") == ["round-1-seed-44"]
    assert list_targets("train", "rounds=2") == [1], "one seed trains an earlier round"
    assert list_targets("train@2", "rounds=2")[1:] == ["round-2-seed-43", "round-2-seed-44"]
    assert list_targets("sample") == [1], "an evaluation of a replicate is of no round"


@pytest.mark.long
def test_a_rebuilt_sample_with_the_same_bytes_rebuilds_itself_alone(toys):
    toys.run(*SMALL)
    drop_the_training_sample(toys)
    assert toys.built(toys.run(*SMALL)) == ["sample round 1"]


@pytest.mark.long
def test_a_rebuilt_sample_with_other_bytes_rebuilds_all_its_descendants(toys):
    toys.run(*SMALL)
    before = toys.manifests()
    drop_the_training_sample(toys)
    output = toys.run(*SMALL, salt="other")
    built = toys.built(output)
    first = [f"{stage} round 1" for stage in ("sample", "score", "pair", "reference", "train")]
    assert built[:6] == [*first, "sample test round-1"] and built[8:] == ["evaluate report"]
    assert set(built[6:8]) == {"reference test round-1", "score test round-1"}, "side by side"
    assert "was rebuilt" in output
    aside = [p.name for p in (toys.folder / "store").glob("*/*.old-*")]
    assert len(aside) == 8, "every stale artifact steps aside under its content's name"
    assert {name for name, m in toys.manifests().items() if ".old-" not in name} == set(before)


@pytest.mark.long
def test_waves_and_refits_are_built_in_their_round_and_once(toys):
    words = [*SMALL, "init=best_of_n", "best_of_n=default", "until=train@1"]
    tail = [
        f"{stage} round 1" for stage in ("sample", "score", "sft", "pair", "reference", "train")
    ]
    built = toys.built(toys.run(*words, "sample.resample_ties=[4]"))
    in_round = [name for name in built if name.endswith("round 1")]
    assert in_round[:2] == ["sample round 1", "score round 1"]
    assert sorted(in_round[2:]) == sorted(tail)
    built = toys.built(toys.run(*words, "sample.resample_ties=[4, 8]"))
    assert sorted(built) == sorted(tail), "the waves before the new one lie in the store"
    assert built[:2] == tail[:2] and built[-1] == "train round 1"


def test_a_refit_starts_from_the_round_s_policy_on_the_round_s_own_samples():
    steps = named(plan(composed("recipes=best_of_n_smoke", "rounds=2", "sample.per_round=200")))
    refit = steps["sft@2"]
    assert refit.inputs["base"] is steps["train@1"] and steps["train@2"].inputs["init"] is refit
    assert (
        refit.inputs["samples"] == steps["pair@2"].inputs["samples"]
        and len(refit.inputs["samples"]) == 3
    )
    assert refit.inputs["scores"] == steps["pair@2"].inputs["scores"]
    assert steps["train@2"].inputs["reference"] is refit
    read = [
        (s.stage, part)
        for step in refit.ancestors()
        for _, s, part in step.edges()
        if s.stage == "prompts"
    ]
    assert set(read) == {("prompts", "train"), ("prompts", "decontamination"), ("prompts", "dev")}
    dev = [step for step in refit.ancestors() for _, s, part in step.edges() if part == "dev"]
    assert {step.stage for step in dev} == {"train"}, (
        "dev prompts watch the training of round 1, as without a best_of_n"
    )
    first = steps["sft@1"].ancestors()
    assert {part for step in first for _, s, part in step.edges() if s.stage == "prompts"} == {
        "train",
        "decontamination",
    }


def drop_the_training_sample(toys: Toys) -> None:
    import shutil

    name = next(
        n
        for n, m in toys.manifests().items()
        if n.startswith("sample/") and m["config"]["purpose"] == "train"
    )
    shutil.rmtree(toys.folder / "store" / name)
