"""Whole runs on a real Ray and a real Slurm of two nodes each: the bytes are those of one machine,
whatever is killed, and no process is left.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_smoke import SMALL as SMALL_SMOKE
from tests.stages.test_sample import SCRIPTED, Drawn
from tests.support import ray_cluster, slurm
from tests.support.house import HOUSE, Toys

pytestmark = pytest.mark.slow
ABSENT = {"ray": ray_cluster.explain_absence(), "slurm": slurm.explain_absence()}
# A step of one core each, so that a node has room for several.
TWO_MACHINES = ["cluster.resources.sample.machines=2", "cluster.resources.sample.cpus=2"]
SLOWLY = {"shard_pause": "0.5"}
PIECES = "pipeline.driver.worker", "pipeline work", "pipeline.driver.cluster"


@pytest.fixture(scope="module", params=["ray", "slurm"])
def cluster(request, tmp_path_factory):
    """What a command line and its environment need for it."""
    if reason := ABSENT[request.param]:
        pytest.skip(reason)
    if request.param == "ray":
        with ray_cluster.run_ray() as address:
            yield ["cluster=ray", f"cluster.address={address}"], {}
        return
    with slurm.run_slurm(tmp_path_factory.mktemp("slurm") / "slurm") as environment:
        yield ["cluster=slurm"], {"SLURM_CONF": environment["SLURM_CONF"]}


class Remote(Drawn):
    """Runs with the variables of a cluster."""

    variables: dict[str, str]

    def environment(self, **toy: str) -> dict[str, str]:
        return super().environment(**toy) | self.variables


def make(kind: type[Toys], folder: Path, variables: dict[str, str]) -> Toys:
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
    words, variables = cluster
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
    words, variables = cluster
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
    words, variables = cluster
    there = make(Remote, tmp_path / "there", variables)
    driver = there.start(*SCRIPTED, *words, **SLOWLY)
    wait_for(lambda: len(shards(there)) > 2 or driver.poll() is not None)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75 and "Run the same command to resume" in output
    wait_for(lambda: not list_processes(there.folder), 60)


def test_more_than_any_node_has_is_refused_before_anything_starts(tmp_path, cluster):
    words, variables = cluster
    there = make(Remote, tmp_path / "there", variables)
    process = there.start(*SCRIPTED, *words, "cluster.resources.sample.cpus=64")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "sample asks for 64 cores" in output
    assert not (there.folder / "store" / "sample").exists()


@pytest.mark.model
def test_a_training_on_two_machines_makes_the_bytes_of_two_processes(tmp_path, cluster):
    words, variables = cluster
    here, there = ["train.runtime.processes=2"], [*words, "train.runtime.machines=2"]
    made = {
        name: run_models(tmp_path / name, variables, "until=train", "train.batch=4", *more)
        for name, more in {"here": here, "there": there}.items()
    }
    assert made["here"] == made["there"]
    wait_for(lambda: not list_processes(tmp_path), 60)


@pytest.mark.model
def test_a_whole_run_with_models_makes_the_bytes_of_one_machine(tmp_path, cluster):
    words, variables = cluster
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
