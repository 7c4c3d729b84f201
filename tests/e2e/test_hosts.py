"""Runs on two hosts that share nothing but a disk: leases, joined workers, ranks that meet."""

import os
import subprocess
import sys

import pytest

from tests.e2e.test_smoke import SMALL as SMALL_SMOKE
from tests.stages.test_sample import SCRIPTED, Drawn
from tests.support import hosts
from tests.support.house import HOUSE, Toys
from tests.support.slurm import wait_for

if reason := hosts.explain_absence():
    pytest.skip(reason, allow_module_level=True)
pytestmark = pytest.mark.slow
PIPELINE = [sys.executable, "-m", "pipeline"]


@pytest.fixture
def two(tmp_path):
    with hosts.run_hosts(tmp_path) as found:
        yield found


def start(host: hosts.Host, toys: Toys, log: str, *words: str) -> "subprocess.Popen[str]":
    with (toys.folder / log).open("w") as output:
        return host.start(
            [*PIPELINE, *words],
            cwd=toys.folder,
            env=toys.environment(shard_pause="0.5"),
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.timeout(1200)
def test_after_a_lost_host_the_run_on_the_other_takes_its_step(tmp_path, two):
    """Both hosts have the same run, of which one waits. A process that helps is lost as well."""
    first, second = two
    there, here = Drawn(tmp_path / "there"), Drawn(tmp_path / "here")
    for toys in (there, here):
        toys.folder.mkdir()
    lost = start(first, there, "first.log", *SCRIPTED)
    [queue] = wait_for(lambda: [*there.folder.glob("store/sample/*/scratch/queue/queue.json")])
    helper = start(second, there, "helper.log", "work", "runs/latest", "step=sample")
    waiting = start(second, there, "second.log", *SCRIPTED)
    wait_for(lambda: len(there.drawn()) > 15 and [*(queue.parent / "others").glob("*")])
    assert lost.poll() is None and waiting.poll() is None
    helper.kill()
    wait_for(lambda: len(there.drawn()) > 30)
    done = {path.name: path.stat().st_mtime_ns for path in there.drawn()}
    lost.kill()
    assert len(done) < 120 and waiting.wait(600) == 0, (there.folder / "second.log").read_text()
    here.run(*SCRIPTED)
    assert there.files() == here.files() and len(there.drawn()) == 150
    published = {path.name: path.stat().st_mtime_ns for path in there.drawn()}
    assert done.items() <= published.items(), "no shard is drawn twice"
    assert "first" in (there.folder / "second.log").read_text(), "it says whom it waits for"


@pytest.mark.model
@pytest.mark.timeout(1200)
def test_ranks_on_two_hosts_meet_and_make_the_bytes_of_one(tmp_path, two):
    first, second = two
    words = [*SMALL_SMOKE, "backend=transformers", "until=train", "train.batch=4"]
    apart, alone = Toys(tmp_path / "apart"), Toys(tmp_path / "alone")
    environment = {**os.environ, "PYTHONPATH": str(HOUSE)}
    for toys in (apart, alone):
        toys.folder.mkdir()

    def begin(host: hosts.Host, *typed: str) -> "subprocess.Popen[str]":
        return host.start([*PIPELINE, *typed], cwd=apart.folder, env=environment)

    run = begin(first, "run", *words, "train.runtime.machines=2")
    wait_for(lambda: (apart.folder / "runs" / "latest").exists() or run.poll() is not None)
    begin(second, "work", "runs/latest", "step=train", "wait=600")
    assert run.wait(900) == 0
    command = [*PIPELINE, "run", *words, "train.runtime.processes=2"]
    subprocess.run(command, cwd=alone.folder, env=environment, check=True, timeout=900)
    assert apart.files() == alone.files()
