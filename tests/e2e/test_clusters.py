"""Whole runs on a real Ray and a real Slurm of two nodes each: the bytes are those of one machine,
whatever is killed, and no process is left.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.driver.test_sweep import GRID, list_trainings_at_once
from tests.e2e.test_smoke import SMALL as SMALL_SMOKE
from tests.stages.test_sample import SCRIPTED, Drawn
from tests.support import ray_cluster, slurm
from tests.support.house import HOUSE, Toys

pytestmark = pytest.mark.slow
ABSENT = {"ray": ray_cluster.explain_absence(), "slurm": slurm.explain_absence()}
# A step of one core each, so that a node has room for several.
TWO_MACHINES = ["cluster.resources.sample.machines=2", "cluster.resources.sample.cpus=2"]
SLOWLY = {"shard_pause": "0.5"}
LOSSES, LOSSES_OF_A_RUN = 20, 4
PIECES = "pipeline.driver.worker", "pipeline work", "pipeline.driver.cluster"


class Cluster(NamedTuple):
    """`losses`: what a cluster loses now and then. Each returns whether there was any to lose."""

    words: list[str]
    variables: dict[str, str]
    losses: dict[str, Callable[[random.Random], bool]]


@pytest.fixture(scope="module", params=["ray", "slurm"])
def cluster(request, tmp_path_factory):
    if reason := ABSENT[request.param]:
        pytest.skip(reason)
    if request.param == "ray":
        with ray_cluster.run_ray() as nodes:
            words = ["cluster=ray", f"cluster.address={nodes.address}"]
            yield Cluster(words, {}, {"node": lambda _: nodes.lose() or True})
        return
    with slurm.run_slurm(tmp_path_factory.mktemp("slurm") / "slurm") as environment:
        losses = {
            "cancelled job": partial(slurm.lose_a_job, environment, ["scancel"]),
            "requeued job": partial(slurm.lose_a_job, environment, ["scontrol", "requeue"]),
        }
        variables = {"SLURM_CONF": environment["SLURM_CONF"]}
        yield Cluster(["cluster=slurm"], variables, losses)


class RemoteToys(Toys):
    """Runs with the variables of a cluster."""

    variables: dict[str, str]

    def environment(self, **toy: str) -> dict[str, str]:
        return super().environment(**toy) | self.variables


class Remote(RemoteToys, Drawn):
    pass


KindT = TypeVar("KindT", bound=RemoteToys)


def make(kind: type[KindT], folder: Path, variables: dict[str, str]) -> KindT:
    folder.mkdir()
    toys = kind(folder)
    toys.variables = variables
    return toys


def list_processes(folder: Path) -> list[int]:
    """Ours that work for a run in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone meanwhile
            continue
        if str(folder) in line and any(piece in line for piece in PIECES):
            found.append(int(process.name))
    return found


def wait_for(condition, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def undisturbed(tmp_path: Path) -> dict:
    here = make(Remote, tmp_path / "here", {})
    here.run(*SCRIPTED)
    return here.files()


def shards(toys: Toys) -> list[Path]:
    return [*(toys.folder / "store" / "sample").glob("*/samples/*.parquet")]


def test_a_killed_worker_and_a_killed_helper_are_started_again(tmp_path, cluster):
    words, variables, _ = cluster
    there = make(Remote, tmp_path / "there", variables)
    driver = there.start(*SCRIPTED, *words, *TWO_MACHINES, **SLOWLY)
    wait_for(lambda: len(shards(there)) > 5 or driver.poll() is not None)
    logs = there.folder.glob
    wait_for(
        lambda: any("joined sample" in log.read_text() for log in logs("runs/*/*/logs/*help*"))
    )
    helper = next(
        pid
        for pid in list_processes(there.folder)
        if b"work" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    )
    os.kill(helper, signal.SIGKILL)
    output, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, output
    assert there.files() == undisturbed(tmp_path)
    wait_for(lambda: not list_processes(there.folder), 60)


def test_a_killed_driver_leaves_no_process_and_the_same_command_resumes(tmp_path, cluster):
    words, variables, _ = cluster
    there = make(Remote, tmp_path / "there", variables)
    driver = there.start(*SCRIPTED, *words, *TWO_MACHINES, **SLOWLY)
    wait_for(lambda: len(shards(there)) > 5 or driver.poll() is not None)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not list_processes(there.folder), 120)
    done = {path.name: path.stat().st_mtime_ns for path in shards(there)}
    process = there.start(*SCRIPTED, *words)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert there.files() == undisturbed(tmp_path)
    published = {path.name: path.stat().st_mtime_ns for path in shards(there)}
    assert done.items() <= published.items(), "no shard is drawn twice"


def test_an_interrupted_run_stops_its_steps(tmp_path, cluster):
    words, variables, _ = cluster
    there = make(Remote, tmp_path / "there", variables)
    driver = there.start(*SCRIPTED, *words, **SLOWLY)
    wait_for(lambda: len(shards(there)) > 2 or driver.poll() is not None)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75 and "Run the same command to resume" in output
    wait_for(lambda: not list_processes(there.folder), 60)


def test_more_than_any_node_has_is_refused_before_anything_starts(tmp_path, cluster):
    words, variables, _ = cluster
    there = make(Remote, tmp_path / "there", variables)
    process = there.start(*SCRIPTED, *words, "cluster.resources.sample.cpus=64")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "sample asks for 64 cores" in output
    assert not (there.folder / "store" / "sample").exists()


@pytest.mark.timeout(3600)
def test_the_points_of_a_sweep_train_side_by_side_and_are_those_of_one_machine(tmp_path, cluster):
    words, variables, _ = cluster
    here, there = (make(RemoteToys, tmp_path / name, variables) for name in ("here", "there"))
    for toys, more in ((here, []), (there, words)):
        process = toys.start(*GRID, *more, pause="train:8")
        output, _ = process.communicate(timeout=1700)
        assert process.returncode == 0, output
    assert there.files() == here.files()
    assert list_trainings_at_once(there) > 1 == list_trainings_at_once(here)
    assert len(there.notes("start")) == len(here.notes("start")), "each step is built once"


@pytest.mark.timeout(7200)
def test_whatever_is_lost_at_random_only_what_was_in_flight_is_done_again(tmp_path, cluster):
    wanted, chance, lost, runs = undisturbed(tmp_path), random.Random(0), Counter[str](), 0
    while lost.total() < LOSSES:
        runs += 1
        there = make(Remote, tmp_path / f"there-{runs}", cluster.variables)
        lost += run_under_losses(there, cluster, chance)
        assert there.files() == wanted
        wait_for(lambda folder=there.folder: not list_processes(folder), 240)
        print(f"{runs} runs, lost {dict(lost)}", flush=True)
    assert {"driver", "process", *cluster.losses} == {*lost}


def run_under_losses(there: Remote, cluster: Cluster, chance: random.Random) -> Counter[str]:
    """Type the same command until it is done, while something is lost now and then."""
    lost, done = Counter[str](), dict[str, int]()
    while True:
        before = lost.total()
        driver = there.start(*SCRIPTED, *cluster.words, *TWO_MACHINES, **SLOWLY)
        losses = {
            "driver": lambda _, driver=driver: driver.kill() or True,
            "process": partial(kill_any, there.folder),
            **cluster.losses,
        }
        while driver.poll() is None:
            if lost.total() < LOSSES_OF_A_RUN and made_progress(there, driver, chance):
                done |= read_times(there)
                kind = chance.choice([*losses])
                lost[kind] += losses[kind](chance)
            time.sleep(0.2)
        output, _ = driver.communicate()
        if driver.returncode == 0:
            break
        assert driver.returncode in (1, 75, -signal.SIGKILL) and lost.total() > before, output
    assert done.items() <= read_times(there).items(), "no shard is drawn twice"
    return +lost


def read_times(there: Remote) -> dict[str, int]:
    """When each shard was written."""
    times = dict[str, int]()
    for path in shards(there):
        with suppress(FileNotFoundError):  # published in this moment, at another path
            times[path.name] = path.stat().st_mtime_ns
    return times


def made_progress(there: Remote, driver: subprocess.Popen, chance: random.Random) -> bool:
    """Whether it goes on after some more shards."""
    wanted = len(shards(there)) + chance.randrange(1, 20)
    wait_for(lambda: len(shards(there)) >= wanted or driver.poll() is not None, 600)
    return driver.poll() is None


def kill_any(folder: Path, chance: random.Random) -> bool:
    """One of our processes on the cluster's nodes."""
    if processes := list_processes(folder):
        with suppress(ProcessLookupError):
            os.kill(chance.choice(processes), signal.SIGKILL)
            return True
    return False


@pytest.mark.model
def test_a_training_on_two_machines_makes_the_bytes_of_two_processes(tmp_path, cluster):
    words, variables, _ = cluster
    here, there = ["train.runtime.processes=2"], [*words, "train.runtime.machines=2"]
    made = {
        name: run_models(tmp_path / name, variables, "until=train", "train.batch=4", *more)
        for name, more in {"here": here, "there": there}.items()
    }
    assert made["here"] == made["there"]
    wait_for(lambda: not list_processes(tmp_path), 60)


@pytest.mark.model
def test_a_whole_run_with_models_makes_the_bytes_of_one_machine(tmp_path, cluster):
    words, variables, _ = cluster
    here = run_models(tmp_path / "here", variables)
    assert run_models(tmp_path / "there", variables, *words) == here and len(here) > 15


def run_models(folder: Path, variables: dict[str, str], *words: str) -> dict:
    """Every published step's files with their hashes, but for the report, which has times in it."""
    toys = Toys(folder)
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), **variables}
    command = [sys.executable, "-m", "pipeline", *SMALL_SMOKE, "backend=transformers", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=1500)
    return {
        step: [file for file in files if not file["path"].startswith("report.")]
        for step, files in toys.files().items()
    }
