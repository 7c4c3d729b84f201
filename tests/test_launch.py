"""How many processes train, how they share a batch, and what they are held to: the losses of one."""

import sys

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.artifacts import Model
from pipeline.errors import Refusal
from pipeline.ledger import told_in_short
from pipeline.training import launch
from tests.house import SMALL, composed
from tests.preferences import LORA, dpo
from tests.test_guards import NEVER, Round, account, seen


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


def weights(model: Model) -> dict:
    from safetensors.torch import load_file

    return load_file(model.adapter / "adapter_model.safetensors")


@pytest.mark.model
def test_two_processes_give_the_losses_of_one_with_the_summed_batch(round_):
    one = round_.train("one", dpo(LORA, batch=8))
    two = round_.train("two", dpo(LORA, batch=8, processes=2))
    assert len(seen(one, "loss")) == 3
    assert seen(two, "loss") == pytest.approx(seen(one, "loss"), abs=1e-5)
    assert seen(two, "eval_loss") == pytest.approx(seen(one, "eval_loss"), abs=1e-5)
    assert account(two)["kept"] == 3 and not seen(two, "eval_kl")
    together = weights(two)
    assert all((together[name] - weight).abs().max() < 1e-4 for name, weight in weights(one).items())


@pytest.mark.model
def test_processes_that_are_not_reached_are_refused(round_, monkeypatch):
    """On a CPU `accelerate launch` starts one process of the two, and says nothing; its rank tells the stage."""
    alone = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    monkeypatch.setattr(launch, "_launcher", lambda cfg, count: alone)
    with pytest.raises(Refusal, match=r"train.runtime.processes=2: the launcher started 1 "):
        round_.train("unreached", dpo(batch=8, processes=2))
    assert not (round_.store / "train" / "unreached" / "model.json").exists()


@pytest.mark.model
@pytest.mark.parametrize("asked", [{"kl_budget": 3.0}, {"fall_budget": 1.0}])
def test_what_one_process_sees_alone_stops_no_other(round_, asked, capsys):
    from pipeline.training import guards

    given = round_.sft, round_.sft, round_.dev, pl.DataFrame({"prompt_ids": [[1]], "chosen_ids": [[2]]}), round_.store
    with pytest.raises(Refusal, match=rf"{next(iter(asked))} is read by one process alone, and 2 train together"):
        guards.guards_for(dpo(guards=asked), *given, processes=2)
    guards.guards_for(dpo(), *given, processes=2)
    assert "2 processes train together: KL, own answers" in capsys.readouterr().err


def test_the_ledger_says_whether_several_looked():
    assert told_in_short({"processes": 2, "watched": False}) == "2 processes, which do not look at KL"
    assert told_in_short({"processes": 2, "watched": True}) == "2 processes"


def test_a_batch_that_does_not_share_out_is_refused():
    assert launch.processes(dpo(batch=12, micro_batch=2, processes=3)) == 3
    with pytest.raises(Refusal, match=r"train.batch=4 does not share out to 3 processes .*micro_batch=2"):
        launch.processes(dpo(batch=4, processes=3))


def test_a_rate_far_above_the_usual_one_is_refused_unless_it_is_named():
    with pytest.raises(ValidationError, match=r"learning_rate=0.01 is over ten times what is usual here \(0.0005\)"):
        dpo(learning_rate=1e-2, usual_rate=5e-4)
    assert dpo(learning_rate=1e-2, usual_rate=1e-2).learning_rate == 1e-2


@pytest.mark.parametrize(("name", "rate"), [("dpo", 5e-7), ("orpo", 8e-6)])
def test_each_objective_brings_its_usual_rate(name, rate):
    cfg = composed(*SMALL, f"train={name}").train
    assert cfg.learning_rate == cfg.runtime.usual_rate == rate


@pytest.mark.model
def test_a_rate_far_below_the_usual_one_is_said(round_, capfd):
    round_.train("slow", dpo(learning_rate=1e-6, usual_rate=5e-5, batch=24))
    assert "learning_rate=1e-06 is under a tenth of what is usual here (5e-05)" in capfd.readouterr().err


@pytest.mark.model
def test_two_processes_that_are_asked_see_the_kl_of_one_and_stop_where_it_does(round_):
    """Five dev prompts between two: the shares are not alike, and what is shown comes from both."""
    rates = {"learning_rate": 2e-2, "warmup": 0.0, "scheduler": "constant", "eval_every": 1}
    guards = {"prompts": 5, "scorer": NEVER}
    kl = seen(round_.train("seen by one", dpo(LORA, **rates, guards=guards)), "eval_kl")
    over = next(step for step in range(2, 7) if kl[step] > (before := max(kl[at] for at in range(step))) + 0.02)
    guards["kl_budget"] = (before + kl[over]) / 2
    one = round_.train("stopped by one", dpo(LORA, **rates, guards=guards))
    two = round_.train("stopped by two", dpo(LORA, **rates, guards=guards, processes=2, watch="always"))
    assert account(two)["steps"] == over == account(one)["steps"]
    assert account(two)["kept"] == over - 1 == account(one)["kept"]
    for figure, slack in (("eval_kl", 1e-3), ("eval_tokens", 0), ("eval_chosen_logp", 1e-4), ("eval_score", 0)):
        assert seen(two, figure) == pytest.approx(seen(one, figure), abs=slack)
    assert (two.path / "answers.jsonl").read_bytes() == (one.path / "answers.jsonl").read_bytes()
    assert all((weights(two)[name] - weight).abs().max() < 1e-3 for name, weight in weights(one).items())


def test_parts_of_weights_answer_nothing(round_, monkeypatch):
    from pipeline.training import guards

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    given = round_.sft, round_.sft, round_.dev, pl.DataFrame({"prompt_ids": [[1]], "chosen_ids": [[2]]}), round_.store
    with pytest.raises(Refusal, match=r"watch=always: the processes hold parts of the weights"):
        guards.guards_for(dpo(watch="always"), *given, processes=2)
