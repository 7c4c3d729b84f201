"""A training of one round is named by its knob, `train_in_round.2`, in whatever is said of it."""

import re

import pytest

from pipeline.errors import UserError
from pipeline.plan import plan
from tests.support.house import SMALL, composed, fingerprints, named

TWO = ["prompts.path=prompts.jsonl", "sft.model=./model", "score=math", "rounds=2"]
TWO = [*TWO, "sample.per_round=64", "+train@train_in_round.2=dpo"]
GRPO = [*TWO[:-1], "+train@train_in_round.2=grpo", "sample.settings.draw.temperature=1"]
OTHERS_SAY_TRAIN = re.compile(r"(?<![\w.@])train[.=]")


def read_fault(*words: str) -> str:
    with pytest.raises(UserError) as error:
        composed(*words)
    return str(error.value)


# Of one block, and across blocks: what is typed, and what is said to be typed. N is the knob.
FAULTS = {
    "a number": ("N.beta=99", "give N.runtime.typical_beta=99"),
    "a key of TRL's": ("N.args.seed=1", "stage: use N.seed"),
    "two knobs": ("N.args.fsdp=x", "use N.runtime.processes and N.runtime.launch"),
    "a loss of its own file": ("N.loss=[bco]", "use train@N=bco_pair"),
    "what is not there": ("N.parallel=1", "for long rows use N.gradient_checkpointing=true"),
    "a scorer": (
        "N.guards.stop_on=score",
        "such as +scorer@N.guards.scorer=regex with N.guards.scorer.pattern=",
    ),
    "guards": (
        "N.guards.stop_on=loss pair.dev={share: 0, min: 0, max_share: 0}",
        "N.guards: a training without dev pairs",
    ),
    "dtype": ("N.dtype=bfloat16 reference.dtype=float32", "and N.dtype=bfloat16"),
    "weight": ("N.weight.column=weight", "N.weight.column=weight: pair.weight is null"),
    "scores": (
        "N.weight.column=margin pair=demonstration",
        "or train@N=dpo without N.weight",
    ),
}
ONLINE = {
    "batch": ("sample.settings.draw.n=6", "Give N.batch=66"),
    "several batches": ("N.args.generation_batch_size=96", "Give N.args.generation_batch_size=64"),
    "its trainer": ("best_of_n=default init=best_of_n", "train@N=grpo has no samples to start"),
}


def name(text: str) -> str:
    return re.sub(r"\bN\b", "train_in_round.2", text)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_names_the_round_s_own_knob(kind):
    words, said = map(name, FAULTS[kind])
    fault = read_fault(*TWO, "dtype=float32", *re.split(r" (?=\w+[.=])", words))
    assert said in fault, fault
    assert not OTHERS_SAY_TRAIN.search(fault), fault


@pytest.mark.parametrize("kind", ONLINE)
def test_a_fault_of_online_training_names_it_as_well(kind):
    words, said = map(name, ONLINE[kind])
    fault = read_fault(*GRPO, *words.split(" "))
    assert said in fault and not OTHERS_SAY_TRAIN.search(fault), fault


def test_an_adapter_is_named_where_it_was_chosen():
    sharded = "train_in_round.2.runtime.launch=zero3"
    assert "Use adapter=lora, or train_in_round.2.runtime.launch" in read_fault(
        *TWO, "adapter=qlora", sharded
    )
    own = "+adapter@train_in_round.2.adapter=qlora"
    assert "Give train_in_round.2.reference_logps=online" in read_fault(*TWO, own)
    assert "Use adapter@train_in_round.2.adapter=lora" in read_fault(*TWO, own, sharded)
    partial = ["adapter=qlora", "train_in_round.2.adapter.rank=8"]
    assert "Use +adapter@train_in_round.2.adapter=lora" in read_fault(*TWO, *partial, sharded)
    assert "train.adapter.rank=0" in (
        fault := read_fault(*TWO, "adapter=lora", "train.adapter.rank=0")
    )
    assert fault.count("rank") == 1, "the round's copy is not a second fault"


def test_a_round_has_train_s_adapter_but_for_its_own_knobs():
    words = [*TWO, "adapter=lora", "train_in_round.2.adapter.rank=4"]
    first, second = composed(*words).trainings
    assert (first.adapter.rank, second.adapter.rank) == (16, 4)
    assert second.adapter.alpha == first.adapter.alpha
    assert second.learning_rate == first.learning_rate


def test_the_knob_is_outside_identity_and_on_the_step():
    words = [*SMALL, "rounds=2"]
    assert fingerprints(*words) == fingerprints(*words, TWO[-1])
    steps = named(plan(composed(*words, TWO[-1], "seeds=2")))
    assert [steps[f"train@{label}"].knob for label in (1, 2)] == ["train", "train_in_round.2"]
    for label in ("2", "round-2-seed-43"):
        assert steps[f"train@{label}"].config.knob == "train_in_round.2"
    online = named(plan(composed(*GRPO)))["train@2"].config
    assert (online.knob, online.mount) == ("train_in_round.2", "train@train_in_round.2")
