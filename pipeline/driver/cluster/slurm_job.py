"""Inside a Slurm job: one module of ours, which ends with the run that submitted it.

`python -m pipeline.driver.cluster.slurm_job LEASE MODULE ARGUMENTS…`
"""

import os
import sys
import time
from pathlib import Path

from pipeline.driver.cluster.node import run_module
from pipeline.errors import DONE, unwind_on_signals
from pipeline.resources import leases

PAUSE = 10.0  # seconds between two looks at the run's lease


class Owner:
    """The driver of a run, which holds the run's lease while it lives."""

    def __init__(self, lease: Path):
        self._lease, self._looked_at, self._is_alive = lease, 0.0, True

    def is_alive(self) -> bool:
        if time.monotonic() - self._looked_at >= PAUSE:
            self._looked_at = time.monotonic()
            self._is_alive = leases.is_held(self._lease)
        return self._is_alive


def main(lease: str, *words: str) -> int:
    unwind_on_signals()
    owner = Owner(Path(lease))
    code = run_module([*words], Path.cwd(), os.environ, has_owner=owner.is_alive)
    if not owner.is_alive():
        return DONE  # with another code the job would be queued again, and its run is gone
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
