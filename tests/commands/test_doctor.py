"""`strop doctor`: what a run's figures or its logs point to, in at most ten lines."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import yaml

from pipeline.artifacts import write_json, write_text
from pipeline.commands import doctor
from pipeline.driver import failures
from pipeline.driver.failures import follow_move
from pipeline.report.analysis.remedies import training as training_checks
from pipeline.training.monitoring import diagnostics, early_stopping
from tests.stages.test_evaluate import Run, scored
from tests.support import evals
from tests.support.house import SMALL, Toys, composed

KL = [(f"p{i:03d}", -10.0, -10.6) for i in range(60)]


class Finished:
    """A finished run's folder with a real report; tests bend its figures before it is read."""

    def __init__(self, folder: Path):
        made = Run(folder / "made").add("sft", scored(lambda i: 0.4 + 0.1 * (i % 2)))
        made.add("round-1", scored(lambda i: 0.6 + 0.1 * (i % 3)), KL)
        made.pairs = [evals.pairs(made.store, "1" * 12)]
        self.report = made.evaluate()
        self.config = composed("recipes=smoke").model_dump(mode="json")
        self.training = {"steps": 24, "planned": 24, "kept": 24, "stopped": None, "symptoms": []}
        self.metrics: list[dict] = []
        self.run_dir = folder / "runs" / "smoke" / "2026-11-29_10-00-00"

    def write(self) -> Path:
        write_json(self.run_dir / "plan.json", {"a" * 12: "sft"})
        write_json(self.run_dir / "report.json", self.report)
        write_text(self.run_dir / "report.html", "")
        write_text(
            self.run_dir / "config.yaml", "# cd x && strop run\n" + yaml.safe_dump(self.config)
        )
        step = self.run_dir / "store" / "09-train-1"
        write_json(step / "training.json", self.training)
        write_text(step / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in self.metrics))
        return self.run_dir

    def diagnose(self) -> list[str]:
        return doctor.diagnose_run(self.write())

    def model(self, name="round-1"):
        return next(row for row in self.report["models"] if row["name"] == name)

    @property
    def gap(self):
        return next(row for row in self.report["differences"] if row["model"] == "round-1")

    @property
    def funnel(self):
        return self.report["funnel"]["pairs"][0]


@pytest.fixture
def run(tmp_path):
    return Finished(tmp_path)


def test_a_round_s_own_training_is_advised_by_its_own_knobs(tmp_path):
    step = tmp_path / "store" / "11-train-2"
    knob = "raise train.beta, or train=rpo"
    symptom = {"symptom": "slow", "cause": "train: steps are small", "knob": knob}
    write_json(
        step / "training.json", {"stopped": "train.guards.kl_budget=5", "symptoms": [symptom]}
    )
    write_text(step / "metrics.jsonl", "")
    plain = doctor.read_training(step, own_rounds=["1"])
    assert plain.symptoms == [symptom]
    own = doctor.read_training(step, own_rounds=["2"])
    assert own.symptoms[0]["knob"] == ("raise train_in_round.2.beta, or train@train_in_round.2=rpo")
    assert own.symptoms[0]["cause"] == symptom["cause"]
    assert own.summary["stopped"] == "train_in_round.2.guards.kl_budget=5"


# ── finished runs ────────────────────────────────────────────────────────────────────────────────


def test_a_sound_run_has_its_figures_and_no_advice(run):
    head, last = run.diagnose()
    assert "finished. round-1 is better than sft. round-1 scores 0.700 and sft 0.450" in head
    assert last.startswith("Nothing in its figures asks for a change.") and "report.html" in last


def unstable(run):
    control = {**run.gap, "model": "control", "mean": 0.08, "low": 0.02, "high": 0.14}
    run.report["differences"].append(control)
    run.report["control"] = {"stable": False, "tests": 1, "why": "It differs."}


def unscored(run):
    run.model()["metrics"]["rules"]["failed"] = 9


def unscored_samples(run):
    run.funnel["dropped_samples"]["no score"] = 900
    run.funnel["scorer"] = "judge"
    run.config["score"]["scorers"]["judge"] = {
        "engine": {"max_tokens": 8, "runtime": {"timeout": 120}}
    }


def flipping(run):
    run.report["duels"][0] |= {"judge": "gpt", "flip_rate": 0.41}


def pleasing(run):
    gains = {"proxy": {"mean": 0.25}, "gold": {"mean": -0.01}, "over_optimised": True}
    rounds = [{"model": "round-1", "scorer": "gold", "kl": 3.0, **gains}]
    run.report["proxy"] = {"training": "rules", "over_optimised": True, "rounds": rounds}


def losing(run):
    run.report["retention"] = [{"name": "gsm8k", "state": "lost"}]


def far(run):
    run.model()["kl"]["mean"] = 14.2


def near(run):
    run.model()["kl"]["mean"] = 0.004


def symptom(run):
    run.training["symptoms"] = [
        {"symptom": "the loss swings", "cause": "c", "knob": "raise train.batch"}
    ]


def displaced(run):
    run.metrics = [{"step": n, "eval_chosen_logp_drop": n / 10} for n in (0, 8)]


def separated(run):
    unclear(run)
    curves = {"round": "round-1", "accuracy": 0.97, "margin": 4.2, "planned": 24, "steps": 24}
    run.report["training"] = [curves]


def stopped(run):
    run.training |= {"kept": 3, "stopped": "KL to the reference is 6 nats"}


def unclear(run):
    run.report["verdict"]["better"] = "unclear"
    run.gap.update(mean=0.02, low=-0.02, high=0.06, detectable=0.05)


def unclear_by_seeds(run):
    unclear(run)
    seeds = {"mean": 0.02, "low": -0.07, "high": 0.11, "n": 3}
    prompts = {"mean": 0.02, "low": 0.0, "high": 0.04, "n": 60}
    run.gap.update(between={"seeds": seeds, "prompts": prompts}, wider="seeds")


def slow(run):
    unclear(run)
    run.config["train"]["learning_rate"] = 3e-5


def fast(run):
    unclear(run)
    run.config["train"]["learning_rate"] = 9e-3


def tied(run):
    run.funnel["ties"] = {"prompts": 240, "all_easy": 0, "all_hard": 180}


def few(run):
    run.funnel["train"] = 40


def filtered(run):
    run.funnel.update(pairs_in=400, dropped_pairs={"margin too small": 300})
    run.config["pair"]["filters"]["min_margin"] = 0.9


def cut(run):
    cost = {"label": 1, "prompts": 400, "completions": 3200, "truncated": 1300, "dropped": {}}
    run.report["funnel"]["samples"] = [cost]


def cut_answers(run):
    run.model()["truncated"] = run.model("sft")["truncated"] = 0.3


def running_on(run):
    cut_answers(run)
    run.model("sft")["truncated"] = 0.0


def longer(run):
    run.model()["tokens"]["mean"] = 25.0
    run.funnel["chosen_longer"] = 0.8


def repeating(run):
    run.model()["repetition"] = 0.3


def overlapping(run):
    run.report["funnel"]["prompts"] = {"in": 100, "dropped": {"overlap with test": 45}}


def too_long(run):
    cost = {"label": 1, "prompts": 60, "completions": 480, "truncated": 0, "dropped": {"x": 40}}
    run.report["funnel"]["samples"] = [cost]


BENT = [
    (unstable, ("sft sampled again differs from itself (+0.080 by rules)", "prompts.split.test")),
    (unscored, ("9 answers of round-1 have no score by rules", "strop trace")),
    (unscored_samples, ("28.1 % of round 1's samples have no score by judge", "timeout (now 120)")),
    (flipping, ("gpt changes its verdict", "41.0 %", "evaluate.duels.gpt.form=json")),
    (pleasing, ("+0.250 by rules", "−0.010 by gold", "train.beta")),
    (losing, ("gsm8k was lost", "+rehearsal@train.rehearsal=default")),
    (far, ("14.2 nats from sft", "train.learning_rate (now 0.0003)", "train.guards.kl_budget=5")),
    (near, ("hardly moved: 0.00 nats", "train.epochs (now 1)")),
    (symptom, ("the loss swings: c", "raise train.batch")),
    (displaced, ("lost 0.80 nats per token", "warn_chosen_logp_drop=0.5", "train=rpo")),
    (separated, ("97.0 % of its pairs apart (margin 4.20)", "train.epochs")),
    (stopped, ("kept step 3 of 24: KL to the reference is 6 nats", "train.eval_every")),
    (slow, ("0.10 times the typical", "train.learning_rate=0.0003 (now 3e-05)")),
    (fast, ("30.0 times the typical", "a model below a billion parameters takes more")),
    (tied, ("60.0 % of round 1's 400 prompts", "180 score lowest", "settings.draw.n=16 (now 8)")),
    (few, ("trained on 40 pairs", "sample.per_round, now 400", "train.batch (now 16)")),
    (filtered, ("75.0 % of round 1's pairs were dropped", "pair.filters.min_margin (now 0.9)")),
    (cut, ("40.6 % of round 1's samples reach the limit of 64", "limits.completion=128 (now 64)")),
    (cut_answers, ("30.0 % of round-1's test answers", "limits.completion=128 (now 64)")),
    (running_on, ("(sft: 0.0 %)", "no longer ends its answers")),
    (longer, ("10.0 to 25.0 tokens", "in 80.0 % of the pairs", "pair=length_matched")),
    (repeating, ("30.0 % now", "train=rpo")),
    (unclear, ("+0.020", "60 test prompts, which detect 0.050", "prompts.split.test=400")),
    (unclear_by_seeds, ("+0.020", "3 seeds", "±0.090", "Try: seeds=6")),
    (overlapping, ("45.0 % of the prompts overlap", "prompts.decontamination.ngram (now 13)")),
    (too_long, ("40.0 % of round 1's prompts are longer", "limits.prompt=128")),
]


@pytest.mark.parametrize(("bend", "words"), BENT, ids=[bend.__name__ for bend, _ in BENT])
def test_a_figure_that_is_off_is_named_with_its_knob(run, bend, words):
    bend(run)
    (line,) = [line for line in run.diagnose()[1:-1] if words[0] in line]
    assert all(word in line for word in words) and ". Try: " in line


def test_at_most_ten_lines_come_and_a_faulty_measurement_comes_first(run):
    for bend, _ in BENT:
        if bend is not near:
            bend(run)
    lines = run.diagnose()
    assert len(lines) == 10 and lines[1].startswith("1. sft sampled again differs from itself")
    assert lines[2].startswith("2. 9 answers of round-1") and "more in" in lines[-1]


def test_answers_that_are_cut_come_before_what_follows_from_it(run):
    cut(run)
    few(run)
    first, second = run.diagnose()[1:3]
    assert first.startswith("1. 40.6 % of round 1's samples reach the limit of 64"), first
    assert second.startswith("2. round 1 trained on 40 pairs"), second


def test_a_test_set_that_would_have_to_be_huge_is_not_advised(run):
    unclear(run)
    run.gap.update(mean=0.001)
    assert any("train further first" in line for line in run.diagnose())


def test_pruned_trainings_are_named_and_the_rest_is_judged(run):
    few(run)
    folder = run.write()
    (folder / "store" / "09-train-1" / "training.json").unlink()
    head, first, _ = doctor.diagnose_run(folder)
    assert "records were pruned" in head and "40 pairs" in first


def test_the_names_shared_with_the_training_are_the_same():
    names = {symptom.name for symptom in diagnostics.SYMPTOMS}
    assert training_checks.LENGTH_SYMPTOM in names
    assert training_checks.CHOSEN_LOGP_DROP == early_stopping.CHOSEN_LOGP_DROP


# ── broken runs ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def diagnose_last(toys: Toys) -> list[str]:
    return doctor.diagnose_run(max((toys.folder / "runs" / "run").iterdir()))


@pytest.mark.long
def test_a_refused_step_is_named_with_its_fault_its_log_and_its_command(toys):
    toys.run(*SMALL, "until=sample", refuse="sample", code=2)
    head, error, remedy, log, resume = diagnose_last(toys)
    assert "failed. Step 3 of 3, sample round 1; 2 steps before it took" in head
    assert (error, remedy) == ("Error: sample: the toy refuses.", "  Type something else.")
    assert Path(log.removeprefix("Log: ")).is_file()
    assert f"cd {toys.folder} && strop run" in resume and "until=sample" in resume
    moved = Toys(toys.folder.rename(toys.folder.with_name("moved")))
    assert f"cd {moved.folder} && strop run" in diagnose_last(moved)[-1]


def test_the_command_of_a_moved_run_names_the_folders_of_now(tmp_path):
    old, new = tmp_path / "old place", tmp_path / "new"
    run_dir = old / "runs" / "mine" / "2026-01-01_00-00-00"
    for folder in (run_dir, old / "store", old / "my"):
        folder.mkdir(parents=True)
    words = ["strop", "run", "--config-dir", f"{old}/my", "recipes=mine", "prompts.path=a=b.jsonl"]
    words += [f"store={old}/store", f"runs={old}/runs"]
    command = f"cd {shlex.quote(str(old))} && {shlex.join(words)}"
    assert follow_move(command, run_dir) == command
    old.rename(new)
    moved = follow_move(command, new / run_dir.relative_to(old))
    assert shlex.split(moved) == [word.replace(str(old), str(new)) for word in shlex.split(command)]
    (new / "team").mkdir()
    two = command.replace(f"store={old}/store", f"store=[{old}/store,{old}/team]")
    moved = shlex.split(follow_move(two, new / run_dir.relative_to(old)))
    assert f"store=[{new}/store,{new}/team]" in moved
    (new / "store").rename(tmp_path / "elsewhere")
    again = follow_move(command, new / run_dir.relative_to(old))
    assert f"store={old}/store" in shlex.split(again), "it is somewhere else"


@pytest.mark.long
def test_a_killed_worker_gets_advice_on_memory_with_its_knobs(toys):
    driver = toys.start(*SMALL, "until=sample", hang="sample")
    deadline = time.monotonic() + 60
    while not toys.notes("child") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(int(toys.notes("start sample")[0].split()[2]), signal.SIGKILL)
    driver.communicate(timeout=60)
    lines = diagnose_last(toys)
    assert "Cause: the machine's memory was full" in "\n".join(lines)
    assert "sample.backend.runtime.max_sequences=128 (now 256)" in "\n".join(lines)
    assert len(lines) <= 10


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_and_a_running_one_are_told_apart(toys, sent):
    driver = toys.start(*SMALL, "until=sample", hang="sample")
    deadline = time.monotonic() + 60
    while not toys.notes("child") and time.monotonic() < deadline:
        time.sleep(0.05)
    (running,) = diagnose_last(toys)
    assert "running. Step 3 of 3, sample round 1" in running
    driver.send_signal(sent)
    driver.communicate(timeout=60)
    head, *lines = diagnose_last(toys)
    assert "interrupted. Step 3 of 3" in head and "To resume, type: " in lines[-1]
    why = "Interrupted (SIGTERM)" if sent is signal.SIGTERM else "ended without a word"
    assert any(why in line for line in lines)


@pytest.mark.long
def test_a_run_that_ended_early_on_purpose_is_finished(toys):
    toys.run(*SMALL, "until=sft")
    head, advice = diagnose_last(toys)
    assert "finished without a report" in head and "until=" in advice


STEP = {
    "stage": "train",
    "knob": "train",
    "label": 1,
    "place": "hub/model",
    "config": {
        "dtype": "float32",
        "gradient_checkpointing": False,
        "adapter": {"kind": "full"},
        "runtime": {"micro_batch": 16},
    },
}
SAMPLE = {
    **STEP,
    "stage": "sample",
    "knob": "evaluate.sample",
    "config": {
        "backend": {"runtime": {"memory": 0.9, "max_sequences": 64}},
        "runtime": {"workers": 2},
    },
}
TRACEBACK = "Traceback (most recent call last):\n  File x\n"
LOGS = [
    (
        STEP,
        "torch.OutOfMemoryError: CUDA out of memory. Tried",
        "train.runtime.micro_batch=8 (now 16)",
    ),
    (
        STEP,
        "torch.OutOfMemoryError: CUDA out of memory. Tried",
        "train.gradient_checkpointing=true",
    ),
    (STEP, "torch.OutOfMemoryError: CUDA out of memory. Tried", "dtype=bfloat16 (now float32)"),
    (STEP, "exitcode  : -9 (pid: 12)\nChildFailedError: train", "dmesg"),
    (SAMPLE, "torch.OutOfMemoryError: x", "evaluate.sample.runtime.workers=1 (now 2)"),
    (
        SAMPLE,
        "ValueError: No available memory for the cache blocks.",
        "backend.runtime.cpu_cache_gib",
    ),
    (STEP, "RuntimeError: \"addmm\" not implemented for 'Half'", "dtype=float32"),
    (STEP, "OSError: [Errno 28] No space left on device", "strop store --prune"),
    (STEP, "openai.APIConnectionError: Connection error.", "runtime.base_url"),
    (STEP, "huggingface_hub.errors.LocalEntryNotFoundError: x", "local folder instead"),
    (STEP, "RuntimeError: NCCL error in: x", "train.runtime.processes=1"),
    (STEP, "RuntimeError: CUDA error: an illegal memory access", "nvidia-smi"),
    (STEP, "ModuleNotFoundError: No module named 'trl'", "make install"),
    (STEP, "KeyError: 'unheard of'", "Cause: not one that is known here"),
]


@pytest.mark.parametrize(("step", "text", "advice"), LOGS, ids=[f"{i}" for i in range(len(LOGS))])
def test_what_a_library_says_in_the_log_becomes_advice(tmp_path, step, text, advice):
    run = write_broken(tmp_path, step, f"▸ train 3/9 steps\n{TRACEBACK}{text}\n")
    lines = doctor.diagnose_run(run)
    assert any(advice in line for line in lines), lines
    assert "failed. Step 4, train round 1" in lines[0] or step is SAMPLE


def test_a_fault_of_ours_needs_no_second_advice(tmp_path):
    log = "torch.OutOfMemoryError: x\n✗ train: no memory.\n  Type train.runtime.micro_batch=1.\n"
    lines = doctor.diagnose_run(write_broken(tmp_path, STEP, log))
    assert lines[1:3] == ["Error: train: no memory.", "  Type train.runtime.micro_batch=1."]
    assert not any(line.startswith(("Cause", "Try")) for line in lines)


def test_only_the_end_of_a_huge_log_is_read(tmp_path):
    log = "x" * 79 + "\n"
    run = write_broken(tmp_path, STEP, log * 50_000 + f"{TRACEBACK}ValueError: at last\n")
    assert len(failures.read_log(next((run / "logs").iterdir()))) <= failures.LAST_BYTES
    assert "Error: ValueError: at last" in doctor.diagnose_run(run)


def write_broken(folder: Path, step: dict, log: str) -> Path:
    """A run of an earlier version, without run.json, whose fourth step failed."""
    run, name = folder / "runs" / "mine" / "2026-11-29_10-00-00", f"003-{step['stage']}-{'b' * 12}"
    write_json(run / "plan.json", {"b" * 12: step["stage"]})
    write_json(run / "steps" / f"{name}.json", step)
    write_text(run / "logs" / f"{name}.log", log)
    failed = {"sign": "✗", "stage": step["stage"], "label": 1, "fingerprint": "b" * 12}
    write_json(run / "ledger.json", [{**failed, "seconds": 3.0, "counted": True}])
    return run


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def refused(capsys, *words) -> str:
    assert doctor.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_what_is_not_a_run_is_refused_with_what_to_give(tmp_path, capsys):
    for place in (tmp_path, tmp_path / "nowhere", "~nosuch/run"):
        error = refused(capsys, place)
        assert f"{place}: no run here" in error and "strop doctor runs/RECIPE/TIME" in error


def test_a_sweep_names_its_points(tmp_path, capsys):
    sweep = tmp_path / "runs" / "mine" / "2026-11-29_10-00-00"
    for point in ("0", "1"):
        write_json(sweep / point / "plan.json", {})
    assert f"a sweep of 2 runs. Give one of them: {sweep}/0 (interrupted)" in refused(capsys, sweep)


DAMAGED = [
    ("report.json", "{", "report.json: cannot be read as JSON"),
    ("report.json", "{}", "report.json: cannot be read as a JSON object (it has no evaluation)"),
    ("ledger.json", "[1]", "ledger.json: not a run's ledger"),
    ("ledger.json", '[{"sign": "✓", "seconds": "long"}]', "ledger.json: not a run's ledger"),
    ("ledger.json", "\x00", "ledger.json: cannot be read as JSON"),
    ("run.json", "[]", "run.json: cannot be read"),
    ("config.yaml", "{", "config.yaml: cannot be read"),
    ("config.yaml", "a: 1", "of another version"),
    ("store/09-train-1/training.json", "{", "training.json: cannot be read"),
]


@pytest.mark.parametrize(("file", "text", "words"), DAMAGED)
def test_a_damaged_record_is_named(run, capsys, file, text, words):
    far(run)
    folder = run.write()
    (folder / file).write_text(text)
    assert words in refused(capsys, folder)


def test_a_report_of_another_version_is_named_with_what_to_type(run, capsys):
    del run.report["models"][0]["metrics"]
    assert "strop report" in refused(capsys, run.write())
