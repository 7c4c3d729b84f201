"""Unit tests of the code in an answer, each answer in a separate process under limits.

The limits keep out accidents: endless loops, full memory or disks, mistaken changes to files and
processes. They are not a prison. Code that means to do harm, or to read its tests, needs a machine
or a container around all this.
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

from pipeline.config import CodeExecution, CodeScorer
from pipeline.errors import UserError
from pipeline.scorers import Answer, Check
from pipeline.scorers.code_harness import NO_NETWORK_SIGN

FENCED_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
HARNESS = Path(__file__).with_name("code_harness.py")


def make_check(cfg: CodeScorer, knob: str = "score.scorers.NAME") -> Check:
    """The share of tests that pass, and whether all do.

    Without code, or with code that fails, no test passes.
    """

    def check_code(answer: Answer) -> dict[str, float]:
        tests = answer.columns[cfg.column]
        tests = [tests] if isinstance(tests, str) else list(tests)
        if not tests:
            raise ValueError(f"the column {cfg.column} holds no test")
        passed = run_tests(cfg, extract_code(answer.completion), tests, knob)
        share = len(passed) / len(tests)
        return {"": share, "all": float(share == 1)}

    return check_code


def extract_code(completion: str) -> str:
    """The last fenced block, usually the final version; without a fence the whole answer."""
    blocks = FENCED_BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


def run_tests(
    cfg: CodeExecution, code: str, tests: list[str], knob: str = "score.scorers.NAME"
) -> set[int]:
    """The indices of the tests that pass."""
    nonce = secrets.token_hex(16)  # so that what the code prints is not taken for a verdict
    message = {
        "code": code,
        "tests": tests,
        "nonce": nonce,
        "network": cfg.network,
        "limits": dict(cfg.limits),
    }
    with tempfile.TemporaryDirectory(prefix="code-") as folder, tempfile.TemporaryFile() as output:
        environment = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "PYTHONHASHSEED": "0"}
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(message).encode(), timeout=cfg.limits.seconds)
        except subprocess.TimeoutExpired:
            pass  # tests that have passed by then count
        finally:
            _kill_group(process)
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    if f"{nonce} {NO_NETWORK_SIGN}" in lines:
        raise UserError(
            "this machine lets no process give up its network, so code would run with it.\n"
            f"  Give {knob}.network=true where that is safe."
        )
    verdicts = [line.removeprefix(nonce).strip() for line in lines if line.startswith(nonce)]
    return {int(verdict) for verdict in verdicts if verdict}


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
