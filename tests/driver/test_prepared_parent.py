"""Workers from a process that has loaded the libraries: as safe as those that load their own."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.driver.child_process import ENVIRONMENT
from tests.driver.test_executor import alive, hanging_worker, undisturbed, wait_for
from tests.support.house import SMALL, Toys

UNTIL_SAMPLE = [*SMALL, "until=sample"]


@pytest.fixture
def toys(tmp_path):
    return Toys(tmp_path)


def find_parent(driver_pid: int) -> int | None:
    """The prepared parent of a driver."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == driver_pid and b"pipeline.driver.prepared_parent" in words:
            return int(entry.name)
    return None


def read_parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def started(toys: Toys) -> dict[str, list[str]]:
    """The pids that ran each stage."""
    found: dict[str, list[str]] = {}
    for line in toys.notes("start"):
        _, stage, pid = line.split()
        found.setdefault(stage, []).append(pid)
    return found


@pytest.mark.long
def test_workers_come_from_it_with_their_own_group_environment_and_log(toys):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample", **{"import": "json"})
    worker, child = hanging_worker(toys)
    parent = find_parent(driver.pid)
    assert parent and read_parent_of(worker) == parent
    assert os.getpgid(worker) == worker == os.getpgid(child)
    environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    assert all(f"{name}={value}".encode() in environment for name, value in ENVIRONMENT.items())
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=30)
    assert driver.returncode == 75
    wait_for(lambda: not any(map(alive, (worker, child, parent))))


@pytest.mark.long
def test_one_knob_switches_it_off_and_makes_the_same(toys, tmp_path):
    driver = toys.start(*UNTIL_SAMPLE, "preload=false", pause="sample:1")
    wait_for(lambda: toys.notes("start sample"))
    assert find_parent(driver.pid) is None
    driver.communicate(timeout=60)
    assert driver.returncode == 0
    assert toys.files() == undisturbed(tmp_path)


@pytest.mark.long
def test_it_is_killed_and_its_workers_end_with_it(toys, tmp_path):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample")
    worker, child = hanging_worker(toys)
    os.kill(find_parent(driver.pid), signal.SIGKILL)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 1 and "killed by signal 9" in output, output
    wait_for(lambda: not alive(worker) and not alive(child))
    toys.run(*UNTIL_SAMPLE)
    assert toys.files() == undisturbed(tmp_path)


@pytest.mark.long
def test_a_killed_driver_leaves_neither_it_nor_its_workers(toys):
    driver = toys.start(*UNTIL_SAMPLE, hang="sample")
    worker, child = hanging_worker(toys)
    parent = find_parent(driver.pid)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not any(map(alive, (worker, child, parent))))


@pytest.mark.long
def test_a_driver_that_is_killed_while_it_loads_leaves_nothing(toys):
    slow = toys.folder / "slow_library.py"
    slow.write_text(
        "import os, time\nif 'prepared' in ' '.join(os.sys.orig_argv): time.sleep(60)\n"
    )
    driver = toys.start(*UNTIL_SAMPLE, hang="sft", **{"import": "slow_library"})
    wait_for(lambda: toys.notes("child"))
    parent = find_parent(driver.pid)
    assert parent
    driver.kill()
    driver.communicate()
    wait_for(lambda: not alive(parent))


def test_a_driver_that_ended_before_it_asks_to_die_with_it_is_seen(toys):
    """A driver that has already ended sends no signal."""
    library = toys.folder / "slow_library.py"
    library.write_text("open('loaded', 'w')\n")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        subprocess.run(
            [sys.executable, "-m", "pipeline.driver.prepared_parent"],
            cwd=toys.folder,
            env=toys.environment(**{"import": "slow_library"}),
            stdin=theirs.fileno(),
            check=True,
            timeout=60,
        )
    assert not (toys.folder / "loaded").exists()


@pytest.mark.long
def test_without_it_a_run_goes_on(toys, tmp_path):
    broken = toys.folder / "broken_library.py"
    broken.write_text("import os\nassert 'prepared' not in ' '.join(os.sys.orig_argv)\n")
    toys.run(*UNTIL_SAMPLE, **{"import": "broken_library"})
    [log] = toys.folder.glob("runs/*/*/logs/prepared_parent.log")
    assert "AssertionError" in log.read_text()
    assert toys.files() == undisturbed(tmp_path)


@pytest.mark.long
def test_steps_of_one_policy_share_a_worker_and_others_do_not(toys):
    toys.run(*SMALL, "until=train@2", "rounds=2", "gate=best")
    pids = started(toys)
    # Of sft round 1 and its dev evaluation; of round 1 its dev evaluation, and then what the gate
    # has chosen, which is another name for it here.
    assert len(pids["sample"]) == 4 and len(set(pids["sample"])) == 3, pids
    others = [pid for stage in ("prompts", "pair", "score", "train") for pid in pids[stage]]
    assert len(others) == len(set(others)), "each has a process of its own"
    assert not set(others) & set(pids["sample"])


@pytest.mark.slow
@pytest.mark.long
def test_killed_between_two_steps_of_one_worker_the_first_is_kept(toys, tmp_path):
    toys.run(*SMALL, "until=score", "preload=false")
    [before] = toys.notes("start sample")
    driver = toys.start(*SMALL, hang="sample", pause="prompts:0")
    worker, _ = hanging_worker(toys)
    os.kill(worker, signal.SIGKILL)
    output, _ = driver.communicate(timeout=30)
    assert driver.returncode == 1 and "killed by signal 9" in output
    assert before in toys.notes("start sample")
    toys.run(*SMALL)
    whole = Toys(tmp_path / "whole")
    whole.folder.mkdir()
    whole.run(*SMALL)
    assert toys.files() == whole.files()


@pytest.mark.long
def test_a_step_without_a_model_runs_beside_one_that_has_one(toys):
    """The exam of sft is scored while its control is sampled."""
    go = toys.folder / "go"
    driver = toys.start(*SMALL, hold=f"reference:{go}")
    wait_for(lambda: toys.notes("start reference"))
    wait_for(lambda: toys.notes("end pair"))
    assert not toys.notes("end reference"), "the pairs are built while the reference is computed"
    go.touch()
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, output


@pytest.mark.slow
@pytest.mark.model
def test_the_libraries_of_the_stages_survive_the_fork(tmp_path):
    """Pools of threads that were in use before, gradients, and a GPU that nobody has opened."""
    made = {}
    for preload in ("true", "false"):
        forked = Forked(tmp_path / preload)
        forked.folder.mkdir()
        forked.run(*SMALL, "until=sample", f"preload={preload}")
        made[preload] = forked.files()
    assert made["true"] == made["false"]


class Forked(Toys):
    def environment(self, **toy: str) -> dict[str, str]:
        return super().environment(**toy) | {"PIPELINE_STAGES": "tests.support.forked"}
