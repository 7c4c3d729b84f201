"""A training of one round says its own knobs while it runs; what it publishes says `train`."""

import json
from types import SimpleNamespace
from typing import get_type_hints

import polars as pl
import pytest

from pipeline.artifacts import Model, write_text
from pipeline.errors import StageError, UserError
from pipeline.models.lora_targets import explain_unknown_target
from pipeline.stages import train
from pipeline.training import launch, micro_batch, pair_columns
from pipeline.training.monitoring import summary
from pipeline.training.monitoring.guards import Guards, build_guards
from tests.support.preferences import LORA, dpo

ROUND = "train_in_round.2"


def second(*given, **changes):
    return dpo(*given, **changes).mounted_at(ROUND)


def test_the_stage_takes_the_knob_that_its_step_has(tmp_path):
    assert get_type_hints(train.run)["knob"] is str, "the worker gives it to stages that name it"
    with pytest.raises(UserError, match=rf"^{ROUND}.reference_logps=precomputed needs"):
        train.run(dpo(), tmp_path, init=Model(tmp_path), knob=ROUND)


def test_every_process_of_it_knows_the_knob(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_run_launcher", lambda *given, **more: 0)
    launch.train_in_ranks(second(), 2, tmp_path, {})
    order = json.loads((tmp_path / "scratch" / "order.json").read_text())
    assert launch.read_config(order).knob == ROUND
    assert launch.read_config(order) == second()


def test_what_this_machine_cannot_run_is_named_by_it():
    faults = [
        second(batch=4, runtime={"processes": 3}).explain_misfit(0),
        second(attention="flex").explain_misfit(0),
        second(batch=64, guards={"kl_budget": 1.0}, processes=2).explain_misfit(0),
    ]
    for fault in faults:
        assert fault and fault.startswith(f"{ROUND}.") and f"{ROUND}." in fault.splitlines()[-1]
        assert " train." not in fault
    fault = second(args={"activation_offloading": True}).explain_misfit(0) or ""
    assert fault.startswith(f"{ROUND}.args.activation_offloading=true needs a GPU")


def test_memory_that_is_too_small_is_named_by_it(tmp_path):
    def run_out(cfg):
        raise micro_batch.OutOfMemory

    with pytest.raises(StageError) as error:
        micro_batch.train_within_memory(second(micro_batch=4), False, tmp_path, run_out)
    assert f"Give {ROUND}.runtime.micro_batch=2 or auto, {ROUND}.gradient" in str(error.value)
    assert f"+adapter@{ROUND}.adapter=lora" in str(error.value)


def test_columns_and_layers_that_are_not_there_are_named_by_it():
    table = pl.DataFrame({"chosen_id": ["a"], "rejected_id": ["b"]})
    cfg = second(weight={"column": "weight", "scale": 1.0})
    with pytest.raises(UserError, match=rf"(?s)^{ROUND}.weight.column=weight: 1 of 1 .*or {ROUND}"):
        pair_columns.select_columns(cfg, table, "train")
    knob = f"{second(LORA).knob}.adapter.targets"
    fault = explain_unknown_target(["nope"], ["q_proj"], ["q_proj"], "lm_head", knob)
    assert fault and fault.startswith(f"{ROUND}.adapter.targets: nope")


def test_guards_warn_and_stop_by_its_knobs(tmp_path, capsys):
    cfg = second(guards={"kl_budget": 1.0, "warn_kl": 0.5})
    watch = Guards(cfg, None, {"prompts": [], "answers": []}, tmp_path)
    watch._warn_of_drift([{"step": 2, "eval_kl": 5.2, "eval_chosen_logp_drop": 9.0}])
    warnings = capsys.readouterr().err
    assert f"over {ROUND}.guards.warn_kl=0.5" in warnings and f"raise {ROUND}.beta" in warnings
    assert f"Take train@{ROUND}=rpo" in warnings and " train." not in warnings
    history = [{"step": 0, "eval_kl": 0.0}, {"step": 1, "eval_kl": 9.1}]
    with pytest.raises(StageError, match=rf"(?s)over {ROUND}.guards.kl_budget=1.*Lower {ROUND}"):
        watch.restore_weights(1, history, {})
    with pytest.raises(UserError, match=rf"^{ROUND}.guards: a training without dev pairs"):
        build_guards(cfg, Model(tmp_path), None, None, pl.DataFrame(), tmp_path)


def test_symptoms_are_shown_by_its_knobs_and_published_by_those_of_train(tmp_path, capsys):
    write_text(tmp_path / "metrics.jsonl", "")
    state = SimpleNamespace(global_step=3, max_steps=3)
    written = []
    for cfg in (dpo(), second()):
        summary.write(cfg, tmp_path, state, 3, None, None, unchanged=True)
        written.append((tmp_path / "training.json").read_text())
    assert written[0] == written[1] and "a smaller train.batch" in written[0]
    first, last = capsys.readouterr().err.splitlines()
    assert "a smaller train.batch, more train.epochs" in first
    assert f"a smaller {ROUND}.batch, more {ROUND}.epochs" in last and " train." not in last
