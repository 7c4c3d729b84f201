"""The stage `merge`: where it is in the plan, what its sweep shares, and what is refused."""

import json

import pytest

from pipeline import artifacts
from pipeline.config import MergePoint
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.stages import merge
from tests.models.test_soup import read, same_bits, write_model
from tests.support.house import SMALL, check_steps, composed, fingerprints, named

WITH_SFT = ["merge=with_sft"]
RIVAL = "evaluate.baselines.merge-10"
TWO = ["rounds=2", "sample.per_round=9"]
MIXED = ["+adapter@train_in_round.2.adapter=lora"]  # round 1 trains all weights


def point(**changes) -> MergePoint:
    return MergePoint(
        **{"models": [], "alpha": None, "method": "linear", "densify": False, **changes}
    )


def run(cfg, tmp_path, *models):
    out = tmp_path / "store" / "merge" / "made"
    out.mkdir(parents=True, exist_ok=True)
    return merge.run(cfg, out, model=models[0], others=[*models[1:]])


def test_the_ends_of_alpha_are_the_parents_and_the_record_says_who_they_are(tmp_path):
    trained = write_model(tmp_path / "store" / "train" / "aaaaaaaaaaaa", seed=1)
    sft = write_model(tmp_path / "store" / "sft" / "bbbbbbbbbbbb", seed=2)
    for alpha, parent in ((0.0, sft), (1.0, trained)):
        made = read(run(point(alpha=alpha), tmp_path, trained, sft))
        assert all(same_bits(made[name], value) for name, value in read(parent).items())
    found = run(point(alpha=0.3), tmp_path, trained, sft)
    told = json.loads((found.path / "merge.json").read_text())
    assert told["parents"] == [
        {"model": "train/aaaaaaaaaaaa", "share": 0.3},
        {"model": "sft/bbbbbbbbbbbb", "share": 0.7},
    ]
    assert artifacts.open_artifact("merge", found.path) == found


def test_models_are_given_by_their_folders(tmp_path):
    """A seed's in the store, and any other in safetensors."""
    own = write_model(tmp_path / "store" / "train" / "aaaaaaaaaaaa", seed=1)
    other = write_model(tmp_path / "store" / "train" / "bbbbbbbbbbbb", seed=2)
    third = write_model(tmp_path / "elsewhere", seed=3)
    cfg = point(models=[str(other.path), str(third.path / "weights")])
    assert cfg.models[0] == str(other.path / "weights")  # whose content enters identity
    made, models = read(run(cfg, tmp_path, own)), [read(one) for one in (own, other, third)]
    for name, value in made.items():
        exact = sum(one[name].double() for one in models) / 3
        assert (value.double() - exact).abs().max() < 0.02  # bfloat16
    with pytest.raises(UserError, match=r"merge\.models\.0=.* it is not a model"):
        run(point(models=[str(tmp_path)]), tmp_path, own)


def test_every_share_is_a_model_and_a_row_of_its_own():
    steps = named(plan(composed(*SMALL, *WITH_SFT, "merge.alpha=[0.1,0.125]")))
    rows = steps["evaluate@report"].inputs["evals"]
    assert [name for name in rows if "merge" in name] == ["merge-10", "merge-12_5"]
    merged = steps["merge@merge-10"]
    assert merged.inputs["model"] is steps["train@1"]
    assert merged.inputs["others"] == [steps["sft@0"]]
    assert rows["merge-10"]["model"] is merged
    assert steps["evaluate@report"].inputs["chosen"] is steps["train@1"]


def test_one_merged_model_is_what_the_run_results_in():
    steps = named(plan(composed(*SMALL, *WITH_SFT)))
    assert steps["evaluate@report"].inputs["chosen"] is steps["merge@merge-50"]


def test_the_gate_compares_merged_models_too():
    words = [*SMALL, *TWO, *WITH_SFT, "merge.alpha=[0.1,0.3]", "gate=best"]
    steps = named(plan(composed(*words)))
    last = steps["gate@merge"]
    names = ["sft", "round-1", "round-2", "merge-10", "merge-30"]
    assert list(last.inputs["evals"]) == names
    assert steps["evaluate@report"].inputs["chosen"] is last
    assert steps["merge@merge-10"].inputs["model"] is steps["train@2"]
    assert steps["train@2"].inputs["init"] is steps["gate@1"] and "gate@2" not in steps


def test_a_soup_is_of_all_rounds_and_of_the_models_that_are_named(tmp_path):
    steps = named(plan(composed(*SMALL, *TWO, "merge=rounds")))
    soup = steps["merge@merge"]
    assert soup.inputs["model"] is steps["train@2"]
    assert soup.inputs["others"] == [steps["train@1"]]
    words = ["merge=paths", f"merge.models=[{tmp_path}]"]
    named_ones = named(plan(composed(*SMALL, *words)))["merge@merge"]
    assert list(named_ones.inputs) == ["model"] and named_ones.config.models == [str(tmp_path)]


def test_a_sweep_of_alpha_shares_all_but_the_merged_models():
    one, other = (
        fingerprints(*SMALL, *WITH_SFT, f"merge.alpha={alpha}") for alpha in ("0.1", "0.3")
    )
    differ = {name.partition("@")[0] for name in one if one[name] not in other.values()}
    assert differ == {"merge", "sample", "reference", "score", "evaluate"}
    mine = {name for name in one if one[name] not in other.values()}
    assert all("merge-10" in name for name in mine - {"evaluate@report"})
    both = fingerprints(*SMALL, *WITH_SFT, "merge.alpha=[0.1,0.3]")
    shared = {*one.items(), *other.items()} - {("evaluate@report", one["evaluate@report"])}
    assert shared - both.items() == {("evaluate@report", other["evaluate@report"])}


def test_merging_changes_nothing_before_it():
    without, merged = fingerprints(*SMALL), fingerprints(*SMALL, *WITH_SFT)
    assert without.items() - merged.items() == {("evaluate@report", without["evaluate@report"])}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["merge=rounds"], r"merge=rounds: there is one round\. Give rounds=2"),
        (["merge=paths"], r"merge\.models has no value yet"),
        (["merge=with_sft", "merge.alpha=1.2"], r"merge\.alpha=1\.2"),
        (["merge=with_sft", "merge.alpha=[0.1,0.1]"], "a share is there twice"),
        (
            ["merge=rounds", "merge.method=slerp", "rounds=3", "sample.per_round=9"],
            "an arc joins two models, and there are 3",
        ),
        (
            ["merge=with_sft", "merge.method=slerp", "adapter=lora"],
            r"slerp.*not an adapter\. Give merge\.densify=true",
        ),
        (
            ["merge=with_sft", "merge.densify=true", "adapter=qlora"],
            r"cannot be added\. Give merge\.densify=false",
        ),
        (
            ["merge=with_sft", "adapter=lora", "train.adapter.dora=true"],
            r"DoRA adapters is not an adapter\. Give merge\.densify=true",
        ),
        (
            ["merge=rounds", *TWO, "adapter=lora", "init=best_of_n", "best_of_n=default"],
            r"each round's adapter is on another model\. Give merge\.densify=true",
        ),
        (
            ["merge=rounds", *TWO, "+train@train_in_round.2=dpo", *MIXED],
            r"some rounds train an adapter and others all weights\. Give merge\.densify=true",
        ),
        (
            [f"+baseline@{RIVAL}=checkpoint", f"{RIVAL}.model=m"],
            r"baselines\.merge-10: the table already has a row",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_runs(words, reason):
    with pytest.raises(UserError, match=reason):
        composed(*SMALL, *words)


def test_models_that_differ_are_refused_before_anything_runs(tmp_path):
    sft = write_model(tmp_path / "sft")
    other = write_model(tmp_path / "other", config={"model_type": "llama", "hidden_size": 9})
    words = [f"sft.model={sft.path}/weights", "sft.revision=null", "merge=paths"]
    steps = plan(composed(*SMALL, *words, f"merge.models=[{other.path}]")).ancestors()
    mergers = [step for step in steps if step.stage == "merge"]
    with pytest.raises(UserError, match="hidden_size is 8 in .* and 9 in"):
        check_steps(mergers)
    steps = plan(composed(*SMALL, *words, f"merge.models=[{tmp_path}]")).ancestors()
    with pytest.raises(UserError, match=r"merge\.models\.0=.* it is not a model"):
        check_steps([step for step in steps if step.stage == "merge"])
