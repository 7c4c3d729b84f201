"""On a node of a cluster: one module of ours as a child process, which ends with its owner.

The owner is the process that calls `run_module`, and through it the run's driver.
`python -m pipeline.driver.cluster.node MODULE ARGUMENTS…` is that child.
"""

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.driver.child_process import ENVIRONMENT, GRACE, follow_driver
from pipeline.resources import leases

UTF8 = {"PYTHONUTF8": "1"}  # a node may have another locale, and all our files are UTF-8
RESTARTS = 3  # of one task whose node or process is lost
PAUSE = 0.1  # seconds between two looks at the child
LOOK = 10.0  # seconds between two looks at a lease


class Owner:
    """Who holds a lease while it lives: a run's driver, or who builds a step."""

    def __init__(self, lease: Path):
        self._lease, self._looked_at, self._is_alive = lease, 0.0, True

    def is_alive(self) -> bool:
        if time.monotonic() - self._looked_at >= LOOK:
            self._looked_at = time.monotonic()
            self._is_alive = leases.is_held(self._lease)
        return self._is_alive


def run_module(
    words: list[str],
    folder: Path,
    environment: Mapping[str, str],
    output: BinaryIO | None = None,
    has_owner: Callable[[], bool] = lambda: True,
) -> int:
    """Run a module. Returns its exit code, as Popen's. `output`: None is that of this process."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, *words],
                env={**ENVIRONMENT, **environment, **UTF8},
                cwd=folder,
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while (code := child.poll()) is None and has_owner():
                time.sleep(PAUSE)
        finally:
            if child.poll() is None:
                _stop(child)
    return child.returncode if code is None else code


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM, wait, then SIGKILL to all that it has started."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main(words: list[str]) -> None:
    follow_driver()
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
