"""Inside a Slurm job: one module of ours, which ends with the run that submitted it.

`python -m pipeline.driver.cluster.slurm_job LEASE MODULE ARGUMENTS…`
"""

import os
import sys
from pathlib import Path

from pipeline.driver.cluster.node import Owner, run_module
from pipeline.errors import DONE, unwind_on_signals


def main(lease: str, *words: str) -> int:
    unwind_on_signals()
    owner = Owner(Path(lease))
    code = run_module([*words], Path.cwd(), os.environ, has_owner=owner.is_alive)
    if not owner.is_alive():
        return DONE  # with another code the job would be queued again, and its run is gone
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
