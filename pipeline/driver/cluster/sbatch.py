"""Slurm job files that a person can read, and how they are submitted."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import INTERRUPTED, UserError

WARNING_SECONDS = 120  # from Slurm's SIGTERM to its SIGKILL: enough for a checkpoint of training
SIGTERM_CODE = 128 + 15  # bash's, where the signal came between the end and its exit code


def render_head(name: str, output: str, options: Mapping[str, object], machines: int = 1) -> str:
    """`options`: sbatch's, without those that are None."""
    own = {
        "--job-name": f"strop-{name}",
        "--chdir": Path.cwd(),
        "--output": output,
        "--nodes": machines,
        "--ntasks": machines,
    }
    given = [
        f"#SBATCH {option}={_quote(str(value))}"
        for option, value in {**own, **options}.items()
        if value is not None
    ]
    return "\n".join(["#!/bin/bash", *given, ""])


def _quote(value: str) -> str:
    """sbatch splits its lines at spaces that are not within quotes."""
    return f'"{value}"' if re.search(r"\s", value) else value


REQUEUE_HEAD = f"""#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{WARNING_SECONDS}
"""


def render_requeued(command: str, *otherwise: str) -> str:
    """A command whose job is queued again where Slurm ended it early.

    `otherwise`: more cases of "STATE CODE SIGNALLED", for any other end.
    """
    cases = "".join(f"    {case}\n" for case in otherwise)
    return f"""{command} &
run=$!
trap 'signalled=1; kill -TERM $run' TERM
until wait $run; code=$?; ! kill -0 $run 2>/dev/null; do :; done  # the signal ends `wait` too
# Interrupted, and not by scancel: queue it again. It resumes from the store.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
case "$state $code $signalled" in
    "RUNNING {INTERRUPTED} 1" | "RUNNING {SIGTERM_CODE} 1") scontrol requeue "$SLURM_JOB_ID" ;;
{cases}esac
exit $code
"""


def submit(words: list[str], advice: str) -> str:
    """Returns the job's number."""
    done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(['sbatch', *words])}: {done.stderr.strip()}\n  {advice}")
    return done.stdout.strip().partition(";")[0]
