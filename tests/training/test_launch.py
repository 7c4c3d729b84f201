"""Training in several processes: how many, how they start and share a batch, the same losses."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from pipeline.artifacts import Model, Pairs, write_json, write_table
from pipeline.config import launch as launching
from pipeline.driver.ledger import summarize_cost
from pipeline.errors import StageError, UserError
from pipeline.resources import leases, machines
from pipeline.training import launch
from tests.e2e.test_smoke import SMALL as SMALL_SMOKE
from tests.support.house import HOUSE, SMALL, Toys, composed
from tests.support.preferences import LORA, QLORA, dpo
from tests.training.test_guards import Round, metric_by_step, training_summary, unpaired_rows


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
    assert len(metric_by_step(one, "loss")) == 3
    assert metric_by_step(two, "loss") == pytest.approx(metric_by_step(one, "loss"), abs=1e-5)
    assert metric_by_step(two, "eval_loss") == pytest.approx(
        metric_by_step(one, "eval_loss"), abs=1e-5
    )
    assert training_summary(two)["kept"] == 3 and not metric_by_step(two, "eval_kl")
    together = weights(two)
    assert all(
        (together[name] - weight).abs().max() < 1e-4 for name, weight in weights(one).items()
    )


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("simpo", "weighted sppo", "aot", "kto")
        ),
    ],
)
def test_an_epoch_s_last_rows_count_once_however_many_processes_share_them(round_, name, tmp_path):
    """The last step of 24 pairs by ten has four rows, all in one process.

    Of 48 unpaired answers by twenty it has eight, five of them in one process.
    """
    others = {
        "dpo": {"micro_batch": 5, "batch": 10, "epochs": 2},
        "simpo": {"loss": ["simpo"], "reference_logps": "none", "batch": 10},
        "weighted sppo": {
            "loss": ["sppo"],
            "weight": {"column": "margin", "scale": 1.0},
            "batch": 10,
        },
        "aot": {"loss": ["aot"], "loss_group": 5, "micro_batch": 5, "batch": 10},
        "kto": {
            "trainer": "kto",
            "loss": ["kto"],
            "reference_logps": "online",
            "loss_group": 10,
            "batch": 20,
            "epochs": 3,
            "micro_batch": "auto",
        },
    }
    cfg = {"micro_batch": 5, **others[name], "eval_every": 2, "learning_rate": 5e-3}
    if name == "kto":
        cfg["epochs"] = 3  # in the first one the KL estimate is below zero, and TRL logs zero
    both = pl.concat([round_.pairs.read_train(), round_.pairs.read_dev()])
    thumbs = pl.concat(
        [unpaired_rows(both, "chosen", True), unpaired_rows(both, "rejected", False)]
    )
    write_table(tmp_path / "unpaired.parquet", thumbs)
    for part in ("train", "dev"):
        write_table(tmp_path / f"{part}.parquet", getattr(round_.pairs, f"read_{part}")())
    given = {"pairs": [Pairs(tmp_path)], "reference": None if name == "simpo" else round_.sft}
    one = round_.train(f"last-{name}", dpo(LORA, **cfg), **given)
    two = round_.train(f"last-{name}-two", dpo(LORA, processes=2, **cfg), **given)
    for figure in (
        "loss",
        "eval_loss",
        *(["kto_kl", "eval_kto_kl"] if name == "kto" else ["rewards/margins"]),
    ):
        assert metric_by_step(two, figure) and metric_by_step(two, figure) == pytest.approx(
            metric_by_step(one, figure), abs=1e-5
        ), figure
    if name == "kto":
        assert any(kl > 1e-3 for kl in metric_by_step(one, "kto_kl").values())


@pytest.mark.slow
@pytest.mark.model
def test_processes_that_are_not_reached_are_refused(round_, monkeypatch):
    """On a CPU `accelerate launch` silently starts one process of two; its rank reports that."""
    alone = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    monkeypatch.setattr(launch, "launcher_command", lambda cfg, count, machine: alone)
    with pytest.raises(
        UserError,
        match=r"the launcher started 1 process of kind NO, and 2 of MULTI_GPU or MULTI_CPU",
    ):
        round_.train("unreached", dpo(batch=8, processes=2))
    assert not (round_.store / "train" / "unreached" / "model.json").exists()


@pytest.mark.slow
@pytest.mark.model
def test_what_breaks_one_process_is_said_whichever_it_is(round_, monkeypatch):
    monkeypatch.setattr(launch, "RANK_MODULE", "tests.support.second_rank")
    with pytest.raises(StageError, match=r"^a process that checks answers was killed\.$"):
        round_.train("second", dpo(batch=8, processes=2))


@pytest.mark.model
def test_several_that_are_not_asked_say_that_they_do_not_look(round_, capsys):
    from pipeline.training.monitoring import guards

    given = (
        round_.sft,
        round_.sft,
        round_.dev,
        pl.DataFrame({"prompt_ids": [[1]], "chosen_ids": [[2]]}),
        round_.store,
    )
    guards.build_guards(dpo(), *given, processes=2)
    bare = (*given[:3], given[3].clear(), given[4])
    with pytest.raises(UserError, match="a training without dev pairs is never evaluated"):
        guards.build_guards(dpo(guards={"stop_on": "loss"}), *bare, processes=2)
    assert "2 processes train together: KL, generated answers" in capsys.readouterr().err


def test_the_ledger_says_whether_several_looked():
    assert (
        summarize_cost({"processes": 2, "watched": False}) == "2 processes, which do not measure KL"
    )
    assert summarize_cost({"processes": 2, "watched": True}) == "2 processes"


@pytest.mark.model
def test_where_memory_runs_out_fewer_rows_go_on_and_the_step_stays(round_, monkeypatch):
    """At the third step memory runs out: resume with half the rows and the same optimizer steps."""
    from pipeline.training.trainers import dpo as trl_dpo

    step, asked = trl_dpo.PretokenizedDPOTrainer.training_step, []

    def full(self, model, inputs, *args):
        rows = self.count_rows(inputs)
        asked.append(rows)
        if rows == 4 and len(asked) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, model, inputs, *args)

    monkeypatch.setattr(trl_dpo.PretokenizedDPOTrainer, "training_step", full)
    short = round_.train("short", dpo(LORA, batch=4, micro_batch="auto", save_every=1))
    assert asked == [4, 4, 4, *[2] * 8]
    assert json.loads((short.path / "cost.json").read_text())["micro_batch"] == 2
    monkeypatch.undo()
    plain = metric_by_step(round_.train("plain", dpo(LORA, batch=4, micro_batch=4)), "loss")
    assert metric_by_step(short, "loss") == pytest.approx(plain, abs=1e-5)
    monkeypatch.setattr(trl_dpo.PretokenizedDPOTrainer, "training_step", full)
    with pytest.raises(
        StageError,
        match=r"ran out with 4 rows at once.\n  Give train.runtime.micro_batch=2 or auto",
    ):
        round_.train("given", dpo(LORA, batch=4, micro_batch=4))


@pytest.mark.slow
@pytest.mark.model
def test_two_machines_give_the_losses_of_one(round_, capsys):
    """The second machine is a second launcher here."""
    work = round_.store / "train" / "apart"
    write_json(work / "step.json", {"story": "runs/mine"})
    codes = []

    def launch_second(order: Path, machine: int) -> int:
        command = [sys.executable, "-m", "pipeline.training.launch", str(order), str(machine)]
        codes.append(subprocess.run(command, cwd=HOUSE).returncode)
        return codes[-1]

    def join() -> None:
        while (invitation := machines.find_invitation(work)) is None:
            time.sleep(0.05)
        machines.join(invitation, launch_second, invitation.is_open)
        assert not machines.join(invitation, launch_second, invitation.is_open), "it was full"

    second = threading.Thread(target=join)
    second.start()
    runtime = {"machines": 2, "address": "127.0.0.1"}
    apart = round_.train("apart", dpo(LORA, batch=8, processes=1, runtime=runtime))
    second.join(60)
    assert codes == [0] and machines.find_invitation(work) is None
    assert "! train: type on 1 more machine: strop work runs/mine" in capsys.readouterr().err
    assert metric_by_step(apart, "loss") == pytest.approx(
        metric_by_step(round_.train("near", dpo(LORA, batch=8)), "loss"), abs=1e-5
    )


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_a_second_machine_joins_a_run_by_hand_and_the_weights_are_those_of_one(tmp_path):
    """`strop work` beside `strop run`, each with one process, against two processes of one run."""
    alone, joined = Toys(tmp_path / "alone"), Toys(tmp_path / "joined")
    words = [*SMALL_SMOKE, "backend=transformers", "until=train", "train.batch=4"]
    for toys in (alone, joined):
        toys.folder.mkdir()

    def start(toys: Toys, *typed: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pipeline", *typed]
        environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
        return subprocess.Popen(command, cwd=toys.folder, env=environment)

    assert start(alone, "run", *words, "train.runtime.processes=2").wait() == 0
    run = start(
        joined, "run", *words, "train.runtime.machines=2", "train.runtime.address=localhost"
    )
    while not (joined.folder / "runs" / "latest").exists() and run.poll() is None:
        time.sleep(0.2)
    other = start(joined, "work", "runs/latest", "step=train", "wait=300")
    try:
        assert run.wait() == 0
        assert joined.files() == alone.files()
    finally:
        other.terminate()
        other.wait(60)
        run.kill()


def test_each_machine_takes_another_number_and_each_attempt_invites_anew(tmp_path):
    write_json(tmp_path / "step.json", {"story": "runs/mine"})
    launched: list[int] = []
    attempts: list[str] = []

    def launch_one(order: Path, number: int) -> int:
        launched.append(number)
        return 1

    def join() -> bool:
        while (found := machines.find_invitation(tmp_path)) is None or found.attempt in attempts:
            time.sleep(0.01)
        return machines.join(found, launch_one, found.is_open)

    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            joined = [pool.submit(join) for _ in range(2)]
            with machines.invite(tmp_path, 3, processes=1) as attempt:
                assert not launched, "the order is not written"
                write_json(tmp_path / "scratch" / "order.json", {"attempt": attempt})
                assert all(one.result() for one in joined) and sorted(launched) == [1, 2]
                assert not join(), "no number is free"
        attempts.append(attempt)
        launched.clear()
    assert len({*attempts}) == 2 and machines.find_invitation(tmp_path) is None


def test_partners_on_a_cluster_that_never_come_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "PATIENCE", 0)
    write_json(tmp_path / "step.json", {"story": "runs/mine", "is_on_cluster": True})
    with (
        pytest.raises(StageError, match="1 more machine did not join .*\n.*runs/mine/logs say"),
        machines.invite(tmp_path, 2, processes=1),
    ):
        pass
    assert machines.find_invitation(tmp_path) is None


def test_who_waits_for_a_training_that_ends_leaves_and_frees_its_number(tmp_path):
    folder = tmp_path / "scratch" / "machines"
    (folder / "abc").mkdir(parents=True)
    call = {"machines": 2, "processes": 1, "attempt": "abc", "code": "0"}
    write_json(folder / "invitation.json", call)
    found = machines.find_invitation(tmp_path)
    assert found is not None and found.is_open()
    assert not machines.join(found, lambda order, number: 0, is_going_on=lambda: False)
    with leases.hold(next(found.list_numbers())):
        write_json(folder / "invitation.json", {**call, "attempt": "def"})
        assert not found.is_open()


def test_an_invitation_of_another_version_can_be_read_and_says_whose_it_is(tmp_path):
    folder = tmp_path / "scratch" / "machines"
    folder.mkdir(parents=True)
    write_json(folder / "invitation.json", {"hosts": 2, "attempt": "abc", "code": "other"})
    found = machines.find_invitation(tmp_path)
    assert found is not None and found.code == "other" and found.is_open()


KTO = {"trainer": "kto", "loss": ["kto"], "reference_logps": "online", "micro_batch": "auto"}
AOT = {"loss": ["aot"], "micro_batch": "auto"}
MEET = {"machines": 2, "address": "head", "port": 6000}


@pytest.mark.parametrize("name", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_accelerate_takes_what_it_is_told_with_trl_s_own_config(name):
    """Read by accelerate's own parser; DeepSpeed and several GPUs are not here to be started."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    def parse_command(**runtime):
        command = launch.launcher_command(
            dpo(launch=name, dtype="bfloat16", runtime=runtime), 4, machine=1
        )
        args = launch_command_parser().parse_args(
            [*command[3:], "-m", "pipeline.training.rank", "order.json"]
        )
        return _validate_launch_command(args)[0]

    here, apart = parse_command(), parse_command(**MEET)
    assert (here.num_processes, here.num_machines, here.main_process_port) == (4, 1, 0)
    assert (apart.num_processes, apart.num_machines, apart.machine_rank) == (8, 2, 1)
    assert (apart.main_process_ip, apart.main_process_port, apart.mixed_precision) == (
        "head",
        6000,
        "bf16",
    )
    assert (here.multi_gpu, here.use_deepspeed, here.use_fsdp) == (
        name == "ddp",
        name[:4] == "zero",
        name == "fsdp2",
    )
    if name == "fsdp2":
        assert (
            here.fsdp_cpu_ram_efficient_loading == "false"
            and here.fsdp_state_dict_type == "FULL_STATE_DICT"
        )
    elif name != "ddp":
        assert here.zero_stage == int(name[-1])
    if name == "zero3":
        assert here.zero3_save_16bit_model  # without it nothing whole could be published


@pytest.mark.parametrize(
    ("gpus", "given", "said"),
    [
        (0, {"processes": 3}, None),
        (2, {"processes": 3}, r"processes=3: .*\b2 GPUs.*\n  Give"),
        (4, {"processes": "auto", "launch": "fsdp2"}, None),
        (0, {"processes": 2, "launch": "fsdp2"}, r"launch=fsdp2 .*\n.* run where there are GPUs"),
        (1, {"processes": "auto", "launch": "fsdp2"}, r"launch=fsdp2 .*\n.* or more GPUs"),
        (1, {"processes": "auto", "launch": "fsdp2", "runtime": MEET}, None),
        (5, {"processes": "auto", "micro_batch": "auto"}, r"batch=24 .*\b5 processes.*\n  Give"),
        (3, {"processes": "auto", "micro_batch": 12}, r"\b3 processes .*runtime.micro_batch=12"),
        (4, {"processes": "auto", **KTO, "loss_group": 8}, None),
        (8, {"processes": "auto", **KTO, "loss_group": 8}, r"loss_group=8 .*\b8 processes: kto"),
        (3, {"processes": "auto", **KTO, "loss_group": 8}, r"train.loss_group .*multiple of 6\b"),
        (
            4,
            {"processes": "auto", **KTO, "batch": 64, "loss_group": 8, "micro_batch": 8},
            r"\b2 in each.*\n  Give train.runtime.micro_batch=auto",
        ),
        (
            2,
            {"processes": "auto", "guards": {"kl_budget": 5.0}},
            r"kl_budget=5 .*\b2 .*eval_when_distributed=true",
        ),
        (
            2,
            {"processes": "auto", "guards": {"kl_budget": 5.0}, "eval_when_distributed": True},
            None,
        ),
        (1, {"processes": "auto", "guards": {"max_chosen_logp_drop": 0.5}}, None),
        (2, {"processes": "auto", **AOT, "loss_group": 8}, r"\b2 processes .*train.loss_group=8"),
        (4, {"processes": "auto", "launch": "zero3"}, "zero3 needs the package deepspeed"),
    ],
)  # fmt: skip
def test_what_cannot_train_together_here(gpus, given, said, monkeypatch):
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    cfg = dpo(**{"batch": 24, **given})
    fault = cfg.explain_misfit(gpus)
    assert fault is None if said is None else re.search(said, fault, re.S)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapter": QLORA, "launch": "zero3"}, "zero3 .*adapter=qlora .*adapter=lora"),
        ({**AOT, "loss_group": 3}, "batch=4 .*loss_group=3: aot"),
        (
            {**KTO, "batch": 12, "loss_group": 4, "micro_batch": 3},
            "micro_batch=3: kto .*loss_group=4",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together(given, said):
    with pytest.raises(ValidationError, match=said):
        dpo(**given)


def test_what_all_processes_find_together_may_stop_them():
    assert dpo(launch="fsdp2", guards={"stop_on": "loss"}).guards.may_stop_early


def test_a_rate_far_above_the_usual_one_is_refused_unless_it_is_named():
    with pytest.raises(
        ValidationError, match=r"learning_rate=0.01 is over ten times the usual rate \(0.0005\)"
    ):
        dpo(learning_rate=1e-2, typical_learning_rate=5e-4)
    with pytest.raises(
        ValidationError, match=r"learning_rate=0.06 is over a hundred times the usual rate"
    ):
        dpo(LORA, learning_rate=6e-2, typical_learning_rate=5e-4)
    assert dpo(learning_rate=1e-2, typical_learning_rate=1e-2).learning_rate == 1e-2
    assert dpo(learning_rate=5e-6, typical_learning_rate=5e-7).learning_rate == 5e-6, (
        "ten times is not over ten times"
    )


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("train", ["dpo", "orpo"])
def test_an_adapter_s_ordinary_rates_are_taken_and_the_remedy_for_others_works_when_typed(
    train, adapter
):
    words = [*SMALL, f"train={train}", f"adapter={adapter}"]
    for rate in (1e-4, 5e-4):
        assert composed(*words, f"train.learning_rate={rate}").train.learning_rate == rate
    with pytest.raises(
        UserError, match=r"train.*learning_rate=0.002 is over a hundred times"
    ) as refused:
        composed(*words, "train.learning_rate=2e-3")
    [remedy] = re.findall(r"give (\S+=\S+)", str(refused.value))
    assert composed(*words, "train.learning_rate=2e-3", remedy).train.learning_rate == 2e-3


@pytest.mark.parametrize("rate", ["5e-6", "6e-6"])
def test_a_full_model_s_limit_stays_ten_times_its_rate(rate):
    words = [*SMALL, f"train.learning_rate={rate}"]
    if float(rate) <= 5e-6:
        assert composed(*words).train.learning_rate == float(rate)
        return
    with pytest.raises(UserError, match="over ten times") as refused:
        composed(*words)
    [remedy] = re.findall(r"give (\S+=\S+)", str(refused.value))
    assert remedy == "train.runtime.typical_learning_rate=6e-06"
    assert composed(*words, remedy).train.learning_rate == float(rate)


@pytest.mark.parametrize(("name", "rate"), [("dpo", 5e-7), ("orpo", 8e-6)])
def test_each_objective_brings_its_usual_rate(name, rate):
    cfg = composed(*SMALL, f"train={name}").train
    assert cfg.learning_rate == cfg.runtime.typical_learning_rate == rate


@pytest.mark.model
def test_a_rate_far_below_the_usual_one_is_said(round_, capfd):
    round_.train("slow", dpo(learning_rate=1e-6, typical_learning_rate=5e-5, batch=24))
    assert (
        "learning_rate=1e-06 is under a tenth of the usual rate (5e-05)" in capfd.readouterr().err
    )
