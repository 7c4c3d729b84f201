"""Trainings of one or two steps: no step is at rate zero, and unchanged weights are reported."""

import json
import math

import polars as pl
import pytest

from pipeline.report.analysis.eval_results import read_eval
from pipeline.training import build
from tests.support import evals
from tests.support.preferences import LORA, dpo
from tests.training.test_guards import Round, metric_by_step, training_summary

pytestmark = pytest.mark.model
SCHEDULES = "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


def test_pairs_are_read_below_a_folder_whose_name_is_a_pattern(tmp_path):
    for text in ("a", "b"):
        table = pl.DataFrame({"prompt": [text]})
        data = build._make_dataset(table, "train", tmp_path / "x[1]")
        assert data["prompt"] == [text]


def rates(folder, schedule: str, steps: int, warmup: float, ours: bool = True) -> list[float]:
    """The optimizer's rate at each step, with our warm-up or with transformers'."""
    import torch
    from transformers import Trainer, TrainingArguments

    from pipeline.training.trainers.learning_rate import NonzeroWarmup

    class Climbing(NonzeroWarmup, Trainer): ...

    args = TrainingArguments(
        str(folder), lr_scheduler_type=schedule, warmup_steps=warmup, use_cpu=True
    )
    trainer = (Climbing if ours else Trainer)(torch.nn.Linear(2, 1), args)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1e-3)
    scheduler, found = trainer.create_scheduler(steps, optimizer), []
    assert (
        trainer.lr_scheduler is scheduler
        and trainer.create_scheduler(steps, optimizer) is scheduler
    )
    for at in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        # A Trainer asks once more at the end: transformers' polynomial then divides by zero.
        if ours or at < steps - 1:
            scheduler.step()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_no_step_is_at_rate_zero_and_what_follows_the_warm_up_is_transformers_own(
    tmp_path, schedule, steps, warmup
):
    found, theirs = (rates(tmp_path, schedule, steps, warmup, ours) for ours in (True, False))
    climbing = math.ceil(steps * warmup)
    assert min(found) > 0 and max(found) <= 1e-3
    assert found[climbing:] == theirs[climbing:]
    if schedule == "constant":
        assert found == theirs
    else:
        assert found[:climbing] == pytest.approx(
            [1e-3 * (at + 1) / (climbing + 1) for at in range(climbing)]
        )


def test_every_trainer_climbs_so():
    from pipeline.training.trainers import dpo, kto, reward, sft
    from pipeline.training.trainers.learning_rate import NonzeroWarmup

    kinds = [
        dpo.PretokenizedDPOTrainer,
        kto.PretokenizedKTOTrainer,
        reward.PretokenizedRewardTrainer,
        reward.UnpairedRewardTrainer,
    ]
    for kind in [*kinds, sft.PretokenizedSFTTrainer]:
        assert kind.create_scheduler is NonzeroWarmup.create_scheduler


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_only_step_of_a_training_changes_the_weights_and_is_told_to_be_few(
    round_, adapter, capfd
):
    given = [LORA] if adapter == "lora" else []
    model = round_.train(f"one {adapter}", dpo(*given, batch=24))
    assert metric_by_step(model, "learning_rate") == {1: 5e-4}
    told = training_summary(model)
    assert (told["steps"], told["unchanged"]) == (1, False)
    assert [one["symptom"] for one in told["symptoms"]] == ["the steps are too few for the warm-up"]
    assert (
        "! train: too few steps (1) for train.warmup=0.1: the warm-up takes 1 of them"
        in capfd.readouterr().err
    )
    looks = metric_by_step(model, "eval_loss")
    assert abs(looks[1] - looks[0]) > 1e-5, "the dev pairs see it"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_nothing_changed_are_told_wherever_they_are_told_of(
    round_, dtype, capfd, tmp_path
):
    """In float32 these steps are too small; bfloat16 rounds larger ones away when publishing."""
    from tests.support.preferences import write_logps

    logps = [write_logps(tmp_path / "logps", round_.sft, round_.pairs, dtype=dtype)]
    rate = {"float32": 1e-60, "bfloat16": 1e-10}[dtype]
    model = round_.train(
        f"still {dtype}", dpo(dtype=dtype, learning_rate=rate, warmup=0.0), logps=logps
    )
    if dtype == "float32":
        file = "model.safetensors"
        assert (model.weights / file).read_bytes() == (round_.sft.weights / file).read_bytes()
    told = training_summary(model)
    assert told["unchanged"] and told["steps"] == 6
    name = "the published weights are those that training started from, byte for byte"
    assert name in [one["symptom"] for one in told["symptoms"]]
    assert f"! train: {name}" in capfd.readouterr().err
    assert name in (model.path / "README.md").read_text()


def test_the_report_names_a_model_that_its_training_left_as_it_was(tmp_path):
    answers = [evals.answer(f"p{at}", 0.5) for at in range(3)]
    asked = frozenset(row["prompt_id"] for row in answers)
    for unchanged in (True, False):
        made = evals.model(tmp_path, "train", f"{int(unchanged)}" * 12)
        (made.path / "training.json").write_text(json.dumps({"unchanged": unchanged}))
        found = read_eval("round-1", evals.make_eval(made, answers), asked, "rules")
        assert found.is_unchanged == unchanged
        assert any("no step changed them" in what for what in found.missing) == unchanged
