"""train=grpo: what its plan has, and what it refuses with what to type instead."""

import re

import pytest

from pipeline.config import OnlineTraining
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.support.house import composed, fingerprints, named

GIVEN = ["prompts.path=prompts.jsonl", "sft.model=./model", "score=math", "train=grpo"]
PLAIN = ["sample.settings.draw={n: 8, temperature: 1.0, top_p: 1.0}"]
SMOKE = ["recipes=smoke", "train=grpo", "train.batch=16"]


def test_a_round_is_one_training_on_the_prompts_that_it_would_have_sampled():
    cfg = composed(*SMOKE, "rounds=2", "train.reference_logps=online")
    steps = named(plan(cfg))
    assert {name.partition("@")[0] for name in steps if name.endswith(("@1", "@2"))} == {"train"}
    second = steps["train@2"]
    assert isinstance(second.config, OnlineTraining)
    assert second.config.request == cfg.sample.request("train", 2)
    assert second.inputs["init"] is steps["train@1"]
    assert second.inputs["reference"] is steps["sft@0"]
    assert second.inputs["prompts"].part == "train" and "pairs" not in second.inputs
    assert (
        "reference"
        not in named(plan(composed(*SMOKE, "train.reference_logps=none")))["train@1"].inputs
    )


def test_its_identity_knows_its_reward_and_no_other_scorer():
    one = fingerprints(*SMOKE)["train@1"]
    other = ["+scorer@score.scorers.long=length"]
    assert fingerprints(*SMOKE, *other)["train@1"] == one
    assert fingerprints(*SMOKE, *other, "pair.scorer=long")["train@1"] != one
    assert fingerprints(*SMOKE, "sample.settings.draw.n=4")["train@1"] != one


def test_one_round_may_train_otherwise():
    cfg = composed("recipes=dpo_then_grpo")
    steps = named(plan(cfg))
    assert steps["train@1"].config == cfg.train and "pair@1" in steps
    assert steps["train@2"].config.trainer == "grpo" and "pair@2" not in steps
    assert steps["train@2"].inputs["reference"] is steps["train@1"]
    assert cfg.train_in_round[2].adapter == cfg.train.adapter
    rivals = named(plan(composed("recipes=grpo_vs_dpo")))
    assert rivals["train@1"].inputs["init"] is rivals["train@2"].inputs["init"]
    smoke = fingerprints("recipes=smoke", "init=sft")
    assert fingerprints("recipes=grpo_vs_dpo")["train@1"] == smoke["train@1"]


def test_what_is_typed_for_a_round_is_above_its_recipe():
    words = ["train_in_round.2.runtime.save_every=2", "train_in_round.2.learning_rate=1e-4"]
    training = composed("recipes=grpo_vs_dpo", *words).train_in_round[2]
    assert (training.runtime.save_every, training.learning_rate) == (2, 1e-4)
    assert training.runtime.micro_batch == 16, "the recipe's"
    with pytest.raises(UserError, match="train_in_round.2.eval_every is missing"):
        composed("recipes=grpo_vs_dpo", "~train_in_round.2.eval_every")
    block = ["train_in_round.2={epochs: 2, runtime: {save_every: 3}}"]
    training = composed("recipes=grpo_vs_dpo", *block).train_in_round[2]
    assert (training.epochs, training.runtime.save_every) == (2, 3)
    assert (training.learning_rate, training.runtime.micro_batch) == (3e-4, 16), "the recipe's"


REFUSED = {
    "score=pairwise score.scorers.pairwise.engine.model=judge": (
        "pair.scorer=pairwise: it compares answers in pairs", "score=rubric"
    ),
    "score=labels score.scorers.labels.path=labels.jsonl": (
        "its labels are of answers that were sampled before", "pair.scorer=ANOTHER"
    ),
    "sample.settings.draw.n=6": ("train.batch=64 answers a step are no whole number of prompts",
                                 "Give train.batch=66, or sample.settings.draw.n=4"),
    "sample.settings.draw.n=1": ("compares several answers", "sample.settings.draw.n=2"),
    "train.args.generation_batch_size=96": ("generation_batch_size=96: whole steps",
                                            "generation_batch_size=64"),
    "sample.resample_ties=[4]": ("sample.resample_ties: train=grpo makes no pairs",
                                 "sample.resample_ties=[]"),
    "pair=sigma": ("pair=sigma: train=grpo makes no pairs", "pair=best_worst"),
    "pair.mix.on_policy=0.5 pair.mix.offline=0.5 offline=file offline.source.path=README.md": (
        "offline: train=grpo makes no pairs", "offline=none"),
    "best_of_n=default init=best_of_n": ("has no samples to start from", "best_of_n=none"),
    "train_on=all": ("train_on=all: train=grpo makes no pairs", "train_on=latest"),
    "train.guards.stop_on=loss": ("grpo has no dev pairs", "guards.stop_on=score"),
    "+rehearsal@train.rehearsal=default": ("reads no pairs or demonstrations", "rehearsal=null"),
    "train.reference_logps=precomputed": ("the stage reference has no values", "online"),
    "train.loss=[sigmoid]": ("sigmoid is not a loss of the installed TRL", "dapo"),
    "train.args.max_completion_length=5": ("is set by the stage", "use limits.completion"),
    "train.args.num_generations=4": ("is set by the stage", "use sample.settings.NAME.n"),
    "train.beta=5": ("20 times more than dapo usually has", "typical_beta=5"),
    "+setting@sample.settings.cold=default": (
        "samples by one setting", "~setting@sample.settings.NAME"),
    "backend@sample.backend=endpoint sample.backend.model=m"
    " sample.backend.runtime.base_url=http://localhost:1/v1": (
        "samples from a policy that changes with each step", "vllm or transformers"),
    "+train@train_in_round.3=dpo": ("there is no round 3", "rounds=3"),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: words.split()[-1].partition("=")[0])
def test_what_it_cannot_take_is_refused_with_what_to_type(words):
    with pytest.raises(UserError) as error:
        composed(*GIVEN, *PLAIN, *words.split(" "))
    for part in REFUSED[words]:
        assert re.search(re.escape(part), str(error.value)), str(error.value)


def test_truncated_sampling_is_warned_of():
    cfg = composed(*GIVEN, *PLAIN)
    assert cfg.training(1).sampling_warning is None
    warning = composed(*GIVEN).training(1).sampling_warning
    assert warning and "top_p 0.9" in warning


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sample.settings.draw.n=6"], r"Give train_in_round\.2\.batch=66"),
        (["pair.edits={2: edits.jsonl}"], r"pair\.edits\.2: round 2 trains by grpo"),
    ],
)
def test_a_round_that_trains_otherwise_is_named_by_its_knob(words, reason):
    with pytest.raises(UserError, match=reason):
        composed("recipes=grpo_vs_dpo", *words)
