"""Unit tests of the code in an answer, each run under limits in a process of its own.

It keeps out accidents: endless loops, full memory or disks, what code does to files and processes by mistake. It is no
prison: code that is out to do harm, or to look at its tests, needs a machine or container of its own around all this.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.config import CodeScorer
from pipeline.errors import UserError
from pipeline.scorers import Answer, Check
from pipeline.scorers.code_harness import NO_NETWORK_SIGN

BLOCK = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
HARNESS = Path(__file__).with_name("code_harness.py")


def check(cfg: CodeScorer, knob: str = "score.scorers.NAME") -> Check:
    """The share of tests that pass, and whether all do. No code, code that breaks or takes too long: its tests fail."""

    def passed(answer: Answer) -> dict[str, float]:
        tests = answer.columns[cfg.column]
        tests = [tests] if isinstance(tests, str) else list(tests)
        if not tests:
            raise ValueError(f"the column {cfg.column} holds no test")
        share = len(run(cfg, code_in(answer.completion), tests, knob)) / len(tests)
        return {"": share, "all": float(share == 1)}

    return passed


def code_in(completion: str) -> str:
    """The last fenced block, where an answer usually says its final version; without a fence all of it."""
    blocks = BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


def run(cfg: CodeScorer, code: str, tests: list[str], knob: str = "score.scorers.NAME") -> set[int]:
    """Which tests pass."""
    nonce = secrets.token_hex(16)  # so that what the code prints is not taken for a verdict
    told = {
        "code": code,
        "tests": tests,
        "nonce": nonce,
        "network": cfg.network,
        "limits": dict(cfg.limits),
    }
    with tempfile.TemporaryDirectory(prefix="code-") as folder, tempfile.TemporaryFile() as said:
        environment = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "PYTHONHASHSEED": "0"}
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(told).encode(), timeout=cfg.limits.seconds)
        except subprocess.TimeoutExpired:
            pass  # what passed until then has passed
        finally:
            _end(process)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    if f"{nonce} {NO_NETWORK_SIGN}" in lines:
        raise UserError(
            "this machine lets no process give up its network, so code would run with it.\n"
            f"  Give {knob}.network=true where that is no danger."
        )
    return {
        int(word)
        for line in lines
        if line.startswith(nonce) and (word := line.removeprefix(nonce).strip())
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
