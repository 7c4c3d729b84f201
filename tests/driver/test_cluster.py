"""Steps on a cluster: what they ask for, what is refused, and how a run follows them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import write_json
from pipeline.driver.cluster import launcher, on_ray, on_slurm, sbatch
from pipeline.driver.cluster.launcher import ClusterWorker
from pipeline.driver.cluster.needs import Needs, StepNeeds, check_machines, find_needs
from pipeline.driver.cluster.node import run_module
from pipeline.errors import UserError
from pipeline.plan import plan
from tests.driver.test_executor import alive, wait_for
from tests.support import fake_slurm
from tests.support.house import HOUSE, SMALL, Toys, composed, named

ONE = Needs(0, 1, None, None)


# ── what a Step asks for ──────────────────────────────────────────────────────────────────────────


def needs_of(name: str, *words: str, has_gpus: bool = True) -> StepNeeds:
    cfg = composed(*SMALL, "cluster=ray", *words)
    return find_needs(cfg.cluster, named(plan(cfg))[name], has_gpus)


def test_a_step_asks_for_the_gpus_of_its_engine_and_for_none_where_it_opens_no_model():
    sample = needs_of("sample@1", "backend.runtime.tensor_parallel=2", "sample.runtime.workers=3")
    assert sample.own == Needs(6, 4, None, None) and sample.helpers == 0
    assert needs_of("pair@1").own == Needs(0, 2, None, None)
    assert needs_of("train@1").own.gpus == 1
    assert needs_of("train@1", "train.runtime.processes=4").own.gpus == 4
    assert needs_of("train@1", "cluster.resources.train.gpus=8").own.gpus == 8
    assert needs_of("train@1", has_gpus=False).own.gpus == 0


def test_further_machines_are_filled_with_helpers_of_one_engine_each():
    asked = [f"cluster.resources.sample.{knob}" for knob in ("gpus=8", "cpus=16", "machines=3")]
    found = needs_of("sample@1", *asked, "backend.runtime.tensor_parallel=2")
    assert found.own == Needs(8, 16, None, None)
    assert found.helper == Needs(2, 4, None, None) and found.helpers == 2 * 4
    on_cpus = needs_of("sample@1", "cluster.resources.sample.machines=3", has_gpus=False)
    assert on_cpus.helper == on_cpus.own and on_cpus.helpers == 2
    rules = needs_of("score@1", "cluster.resources.score.machines=3")
    assert rules.helpers == 0, "rules have no shards"


def test_the_machines_of_a_training_start_together():
    found = needs_of("train@1", "train.runtime.machines=2", "cluster.resources.train.gpus=8")
    assert found == StepNeeds(Needs(8, 4, None, None), Needs(8, 4, None, None), 0, machines=2)
    assert found.describe() == "2 × 8 GPUs, 4 cores, together"
    assert needs_of("sample@1", "train.runtime.machines=2").machines == 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["cluster.resources.train.machines=2"], "Give train.runtime.machines=2; the rest"),
        (["cluster.resources.pair.machines=2"], "its work is not in shards"),
    ],
)
def test_more_machines_than_a_stage_can_use_are_refused(words, fault):
    with pytest.raises(UserError, match=fault):
        check_machines(composed(*SMALL, "cluster=slurm", *words).cluster)


def test_the_cluster_enters_no_fingerprint_and_no_repeated_command():
    from tests.support.house import fingerprints

    words = ["cluster=slurm", "cluster.partition=x", "cluster.resources.train.gpus=8"]
    assert fingerprints(*SMALL) == fingerprints(*SMALL, *words)
    assert composed(*SMALL).command == composed(*SMALL, *words).command


def test_an_environment_holds_no_key():
    with pytest.raises(UserError, match="a key must not be given here"):
        composed(*SMALL, "cluster=ray", "cluster.env={HF_TOKEN: secret-word}")


# ── a Step's worker ───────────────────────────────────────────────────────────────────────────────


class FakeTask:
    def __init__(self):
        self.code, self.wait, self.stopped = None, "the queue is long", False

    def poll(self):
        return self.code

    def explain_wait(self):
        return self.wait

    def stop(self):
        self.stopped = True


class FakeCluster:
    has_gpus = False

    def __init__(self):
        self.tasks = []

    def start(self, task):
        self.tasks.append((task, FakeTask()))
        return self.tasks[-1][1]


def test_a_steps_helpers_start_and_end_with_it(tmp_path):
    fake, record, log = FakeCluster(), tmp_path / "003-sample-abc.json", tmp_path / "log"
    worker = ClusterWorker(fake, "sample", StepNeeds(ONE, ONE, 2), tmp_path)
    write_json(record, {"fingerprint": "abc"})
    worker.start_step(record, log)
    (own, step), (further, helpers) = fake.tasks
    assert own.words == ["pipeline.driver.worker", str(record)] and own.count is None
    assert further.words[:3] == ["pipeline", "work", str(tmp_path)]
    assert further.words[-1] == "step=sample"
    assert further.count == 2 and log.read_bytes() == b""
    assert worker.explain_wait() == "waits for 1 core: the queue is long"
    step.wait = None
    assert worker.explain_wait() is None and worker.poll() is None
    step.code = 75
    assert worker.poll() == 75 and not helpers.stopped
    worker.end()
    assert helpers.stopped and not step.stopped
    worker.stop()
    assert step.stopped


def test_the_machines_of_a_training_join_beside_its_step(tmp_path):
    fake = FakeCluster()
    worker = ClusterWorker(fake, "train", StepNeeds(ONE, ONE, 0, machines=3), tmp_path)
    write_json(record := tmp_path / "007-train-abc.json", {"fingerprint": "abc"})
    worker.start_step(record, tmp_path / "log")
    [(own, _)] = fake.tasks
    assert own.machines == 3 and own.words[0] == "pipeline.driver.worker"
    assert own.partner_words[:3] == ("pipeline", "work", str(tmp_path))
    assert own.partner_words[-1] == "step=train@abc", "no other training's partner"
    assert worker.explain_wait() == "waits for 3 × 1 core, together: the queue is long"


# ── on a node ─────────────────────────────────────────────────────────────────────────────────────


def test_a_module_ends_with_its_exit_code_and_is_stopped_with_its_owner(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    with (tmp_path / "log").open("ab") as log:
        assert run_module(["pipeline.driver.worker", "nowhere"], tmp_path, environment, log) == 1
    assert "nowhere" in (tmp_path / "log").read_text()
    (tmp_path / "sleeper.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid} ')\n"
        "time.sleep(60)\n"
    )
    pids = tmp_path / "pids"
    code = run_module(["sleeper"], tmp_path, environment, has_owner=lambda: not pids.exists())
    assert code == -signal.SIGTERM
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_a_module_gets_its_arguments_and_reads_utf_8_in_every_locale(tmp_path):
    (tmp_path / "shown.py").write_text("import sys; print(__name__, sys.argv[1:], sys.flags)")
    elsewhere = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **elsewhere, "PYTHONPATH": str(HOUSE)}
    with (tmp_path / "log").open("ab") as log:
        assert run_module(["shown", "a=1", "b c"], tmp_path, environment, log) == 0
    shown = (tmp_path / "log").read_text()
    assert shown.startswith("__main__ ['a=1', 'b c']") and "utf8_mode=1" in shown


def test_a_killed_owner_leaves_no_process(tmp_path):
    (tmp_path / "sleeper.py").write_text(
        "import os, time; open('pid', 'w').write(f'{os.getpid()}\\n'); time.sleep(60)"
    )
    start = (
        "import os, pathlib; from pipeline.driver.cluster.node import run_module;"
        " run_module(['sleeper'], pathlib.Path.cwd(), os.environ)"
    )
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    owner = subprocess.Popen([sys.executable, "-c", start], cwd=tmp_path, env=environment)
    pid = tmp_path / "pid"
    child = int(
        wait_for(lambda: pid.exists() and pid.read_text().endswith("\n") and pid).read_text()
    )
    owner.kill()
    owner.wait()
    wait_for(lambda: not alive(child))


# ── Slurm, by programs that stand in for its own ──────────────────────────────────────────────────


@pytest.fixture
def programs(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "_connected", {})
    return folder


def make_task(folder: Path, *words: str, count: int | None = None) -> launcher.ClusterTask:
    log = folder / "log"
    log.touch()
    return launcher.ClusterTask("000-sample-abc", [*words], log, folder, ONE, count)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["cluster.partition=fast"], "Slurm has no such partition.\n  Give one of main."),
        (["cluster.resources.train.cpus=64"], "train asks for 64 cores, and Slurm refuses it"),
        (["cluster.resources.pair.hours=2"], "Slurm allows 1 hours"),
        (
            ["train.runtime.machines=9", "train.batch=18"],
            "train asks for 9 × 4 cores, together, and Slurm refuses it",
        ),
    ],
)
def test_what_slurm_can_never_run_is_refused(programs, words, fault):
    cfg = composed(*SMALL, "cluster=slurm", *words)
    with pytest.raises(UserError, match=fault):
        launcher.check_steps(cfg.cluster, plan(cfg).ancestors())


def test_a_node_that_does_not_see_the_store_is_refused(programs, tmp_path, monkeypatch):
    slurm = on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster)
    slurm.check_nodes([tmp_path], [])
    assert not [*tmp_path.glob(".seen-*")]
    monkeypatch.setenv("FAKE_BLIND", str(tmp_path))
    with pytest.raises(UserError, match=f"does not see {tmp_path}"):
        slurm.check_nodes([tmp_path], [])


def test_a_machine_without_slurm_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster)


def test_a_job_that_vanishes_is_a_failed_step_that_says_so(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOST", "sample")
    slurm = on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster)
    task = make_task(tmp_path, "this")
    job = slurm.start(task)
    assert job.poll() is None, "its file may be late"
    monkeypatch.setattr(on_slurm, "LOST_AFTER", 0.0)
    monkeypatch.setattr(on_slurm, "PAUSE", 0.0)
    assert job.poll() == -signal.SIGKILL
    assert "left no exit code" in task.log.read_text()


def test_a_job_says_what_it_waits_for(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_PENDING", "1")
    monkeypatch.setattr(on_slurm, "PAUSE", 0.0)
    slurm = on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster)
    job = slurm.start(make_task(tmp_path, "this"))
    assert job.explain_wait() == "pending in the queue (Resources)" and job.poll() is None
    job.stop()
    assert "scancel 1" in fake_slurm.read_calls(programs)


def test_a_job_file_can_be_read_and_names_what_was_asked(programs, tmp_path):
    words = ["cluster.account=us", "cluster.env={A: 1}", "cluster.prolog='module load cuda'"]
    slurm = on_slurm.connect(composed(*SMALL, "cluster=slurm", *words).cluster)
    slurm.start(make_task(tmp_path, "json.tool", "--help", count=3))
    text = (tmp_path / "cluster" / "000-sample-abc.sbatch").read_text()
    for line in ("#SBATCH --account=us", "#SBATCH --requeue", "export A=1", "module load cuda"):
        assert line in text.splitlines()
    assert any("sbatch --parsable --array=1-3" in call for call in fake_slurm.read_calls(programs))


def test_a_folder_with_a_space_is_one_word_to_sbatch(programs, tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster).start(make_task(folder, "this"))
    lines = (folder / "cluster" / "000-sample-abc.sbatch").read_text().splitlines()
    assert {f'#SBATCH --chdir="{folder}"', f'#SBATCH --output="{folder}/log"'} <= {*lines}


def test_a_cluster_of_ray_that_does_not_answer_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(launcher, "_connected", {})
    monkeypatch.setattr(on_ray, "find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "ray", None)  # it is not asked
    for address in ("localhost:1", "ray://localhost:1"):
        cfg = composed(*SMALL, "cluster=ray", f"cluster.address={address}").cluster
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(UserError, match=f"{address}: no Ray cluster answers there"):
                launcher.connect(cfg)
        assert time.monotonic() - started < 5


def test_the_job_of_several_machines_starts_what_joins_on_the_others(programs, tmp_path):
    slurm = on_slurm.connect(composed(*SMALL, "cluster=slurm").cluster)
    task = replace(make_task(tmp_path, "own"), machines=3, partner_words=("other", "a word"))
    slurm.start(task)
    lines = (tmp_path / "cluster" / "000-sample-abc.sbatch").read_text().splitlines()
    assert {"#SBATCH --nodes=3", "#SBATCH --ntasks=3"} <= {*lines}
    [partners] = [line for line in lines if line.startswith("srun ")]
    assert partners.startswith("srun --relative=1 --nodes=2 --ntasks=2 --cpus-per-task=1 ")
    assert partners.endswith(" other 'a word' &")
    assert lines.index(partners) < next(at for at, line in enumerate(lines) if " own &" in line)


@pytest.mark.parametrize(
    ("code", "signalled", "is_requeued"), [(75, True, True), (75, False, False), (1, True, False)]
)
def test_an_interrupted_job_is_queued_again_and_leaves_no_exit_code(
    programs, tmp_path, code, signalled, is_requeued
):
    waits = f'trap "exit {code}" TERM; sleep 0.3; kill -TERM $PPID; while :; do sleep 0.1; done'
    command = f"bash -c '{waits if signalled else f'exit {code}'}'"
    body = sbatch.render_requeued(command, "*) echo $code > left ;;")
    # `squeue --jobs` of the real Slurm prints the state alone
    (programs / "squeue").write_text("#!/bin/bash\necho RUNNING\n")
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", body], cwd=tmp_path, env=environment)
    calls = programs / "state" / "calls"
    assert done.returncode == code
    assert (calls.exists() and "requeue 7" in calls.read_text()) == is_requeued
    assert (tmp_path / "left").exists() != is_requeued


@pytest.mark.long
def test_a_run_on_slurm_makes_the_files_of_a_run_here_and_continues_one(programs, tmp_path):
    here = Toys(tmp_path / "here")
    there = Toys(tmp_path / "there")
    for toys in (here, there):
        toys.folder.mkdir()
    here.run(*SMALL, "until=score@1")
    there.run(*SMALL, "until=sft")
    output = there.run(*SMALL, "until=score@1", "cluster=slurm")
    assert there.files() == here.files() and "■ sft " not in output and "■ score" in output
    built = json.loads(next(there.folder.glob("store/score/*/manifest.json")).read_text())
    assert built["provenance"]["device"]


@pytest.mark.long
def test_a_stopped_run_cancels_its_jobs(programs, tmp_path):
    toys = Toys(tmp_path)
    driver = toys.start(*SMALL, "until=sample", "cluster=slurm", hang="sample")
    child = int(wait_for(lambda: toys.notes("child"), 60)[-1].split()[1])
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 75, output
    wait_for(lambda: not alive(child))
    assert any(call.startswith("scancel") for call in fake_slurm.read_calls(programs))


@pytest.mark.slow
@pytest.mark.long
def test_jobs_end_with_a_killed_driver(programs, tmp_path, monkeypatch):
    toys = Toys(tmp_path)
    driver = toys.start(*SMALL, "until=sample", "cluster=slurm", hang="sample")
    child = int(wait_for(lambda: toys.notes("child"), 60)[-1].split()[1])
    driver.kill()
    driver.communicate()
    started = time.monotonic()
    wait_for(lambda: not alive(child), 60)
    assert time.monotonic() - started < 30


@pytest.mark.long
@pytest.mark.parametrize(
    ("toy", "code", "words"),
    [("refuse", 2, "the toy refuses"), ("break", 1, "ValueError: the toy broke"), ("wait", 75, "")],
)
def test_a_step_that_fails_there_ends_the_run_as_one_here(programs, tmp_path, toy, code, words):
    toys = Toys(tmp_path)
    output = toys.run(*SMALL, "until=sample", "cluster=slurm", code=code, **{toy: "sample"})
    assert words in output
