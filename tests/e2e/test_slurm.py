"""A run on a real Slurm of two nodes: interrupted, queued again, helped from the other node."""

import subprocess
import sys

import pytest

from tests.stages.test_sample import SCRIPTED, Drawn, files
from tests.support.slurm import ask, explain_absence, run_slurm, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(explain_absence() is not None, reason=explain_absence() or ""),
]


def test_an_interrupted_job_is_queued_again_and_the_bytes_are_those_of_one_machine(tmp_path):
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    there, here = Drawn(tmp_path / "there"), Drawn(tmp_path / "here")
    with run_slurm(tmp_path / "slurm") as slurm:
        environment = {**slurm, **there.environment(shard_pause="0.5")}
        command = [sys.executable, "-m", "pipeline", "submit", "machines=2", "cpus=1", *SCRIPTED]
        printed = subprocess.check_output(
            command, env=environment, cwd=there.folder, text=True
        ).split()
        job = printed[1].rstrip(":")
        others = there.folder.glob
        wait_for(lambda: [*others("store/sample/*/scratch/queue/others/*/*")])
        subprocess.run(["scancel", "--signal=TERM", "--batch", job], env=environment, check=True)
        wait_for(lambda: "BeginTime" in ask(environment, "squeue", f"--jobs={job}"))
        done = wait_for(lambda: [*others("store/sample/*/manifest.json")], seconds=600)
        wait_for(lambda: not ask(environment, "squeue", "--noheader", f"--jobs={job}").strip())
    here.run(*SCRIPTED)
    assert files(done[0].parent) == files(here.drawn()[0].parent.parent)
    log = next(there.folder.glob("jobs/*/run-*.log")).read_text()
    assert "Interrupted (SIGTERM)" in log and "■ sample" in log
    assert "joined sample 1" in next(there.folder.glob("jobs/*/help-*.log")).read_text()
