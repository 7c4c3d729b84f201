"""A knob, group, value or stage by its old name is refused with the new one, which is accepted."""

import re
import shlex

import pytest

from pipeline.config import renamed
from pipeline.config.compose import CONF, Arguments, compose
from pipeline.driver.outline import select_targets
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.support.house import composed

SMOKE = "recipes=smoke"


def refuse(*words: str) -> str:
    with pytest.raises(UserError) as refusal:
        compose(Arguments.parse([SMOKE, *words]))
    return str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("exam.split=dev", "evaluate.split=dev"),
        ("exam.refer.quantization=null", "evaluate.reference.quantization=null"),
        ("exam.sample.more=[]", "evaluate.sample.resample_ties=[]"),
        ("refer.runtime.workers=1", "reference.runtime.workers=1"),
        ("reference=previous", "reference.model=previous"),
        ("data=all", "train_on=all"),
        ("prompts.fence.ngram=5", "prompts.decontamination.ngram=5"),
        ("sft.fence.ngram=13", "sft.decontamination.ngram=13"),
        ("sample.more=[]", "sample.resample_ties=[]"),
        ("pair.thumbs_at=0.5", "pair.unpaired_threshold=0.5"),
        ("pair.filters.near=0.9", "pair.filters.near_duplicate_threshold=0.9"),
        ("pair.dev.least=4", "pair.dev.min=4"),
        ("pair.dev.most_share=0.2", "pair.dev.max_share=0.2"),
        ("train.logps=live", "train.reference_logps=online"),
        ("train.together=null", "train.loss_group=null"),
        ("train.guards.warn_fall=0.1", "train.guards.warn_chosen_logp_drop=0.1"),
        ("train.guards.fall_budget=0.1", "train.guards.max_chosen_logp_drop=0.1"),
        ("train.runtime.watch=always", "train.runtime.eval_when_distributed=true"),
        ("train.runtime.usual_rate=3e-4", "train.runtime.typical_learning_rate=0.0003"),
        ("+scorer@exam.score.scorers.size=length", "+scorer@evaluate.score.scorers.size=length"),
        ("backend@exam.sample.backend=vllm", "backend@evaluate.sample.backend=vllm"),
    ],
)
def test_an_old_name_is_answered_by_what_to_type(old, new):
    text = refuse(old)
    assert re.search(rf"(write|Type) {re.escape(new)}(\.|$|,)", text.split("  (")[0]), text
    compose(Arguments.parse([SMOKE, *shlex.split(new)]))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["init=refit"], "Give init=best_of_n."),
        (["refit=best"], "write best_of_n=default."),
        (["reward=train", "reward.learn_from=thumbs"], "Give reward.learn_from=unpaired."),
        (
            ["offline=file", "offline.source.path=f", "offline.shape=thumbs"],
            "offline.shape=unpaired",
        ),
        (["pair.filters.pass_rate={at: 1, least: 0, most: 1}"], "pass_rate.threshold=1."),
        (["+other@exam.others.x=served"], "+baseline@evaluate.baselines.x=served"),
    ],
)
def test_an_old_value_group_or_block_is_answered_too(words, remedy):
    assert remedy in refuse(*words) and "missing" not in refuse(*words)


def test_a_name_of_the_user_s_own_is_not_taken_for_an_old_one():
    assert "+duel@evaluate.duels.near=default" in refuse("+duel@exam.duels.near=default")
    words = ["+scorer@score.scorers.most=length", "+scorer@evaluate.score.scorers.most=length"]
    assert "most" in compose(Arguments.parse([SMOKE, *words]))[0][0].score.scorers


@pytest.mark.parametrize(
    "word", ["score.scorers.rules.most=1", "train.near=1", "other=1", "pair.dev.at=1"]
)
def test_an_unknown_key_that_was_another_block_s_knob_is_only_unknown(word):
    assert "is not a knob of" in refuse(word) and " now" not in refuse(word)


def test_a_stage_s_old_name_is_answered():
    with pytest.raises(UserError, match=r"until=data: the plan has no such step"):
        select_targets(plan(composed(SMOKE)), "data")
    with pytest.raises(UserError, match=r"until=refer@1: refer is reference now\. .*reference@1"):
        select_targets(plan(composed(SMOKE)), "refer@1")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("reference: init", "write reference: {model: init}"),
        ("defaults: [smoke, override /refit: best, _self_]", "refit is best_of_n now"),
        ("exam: {split: dev}", "exam is evaluate now: write evaluate.split=dev"),
    ],
)
def test_an_old_name_in_a_recipe_names_the_recipe(tmp_path, recipe, message):
    file = tmp_path / "recipes" / "mine.yaml"
    file.parent.mkdir()
    defaults = "" if recipe.startswith("defaults") else "defaults: [smoke, _self_]\n"
    file.write_text(f"# @package _global_\n{defaults}{recipe}\n")
    with pytest.raises(UserError) as refusal:
        compose(Arguments.parse(["--config-dir", str(tmp_path), "recipes=mine"]))
    assert message in str(refusal.value) and "recipes/mine" in str(refusal.value)


def test_no_old_name_is_in_use():
    """Else the table would refuse a knob that there is."""
    names = {
        key
        for file in CONF.glob("*/*.yaml")
        if file.parent.name != "recipes"
        for key in re.findall(r"^ *(\w+):", file.read_text(), re.M)
    }
    assert names.isdisjoint(set(renamed.KNOBS))
    assert not [block for block in renamed.BLOCKS if (CONF / block).exists()]
