"""Checks for bench/gpu/run.py that write a line and then end as they are told."""

import os
import signal
import sys
import time
from pathlib import Path

from bench.gpu.lines import time_line


def main(file: Path, end: str) -> None:
    with time_line(file, f"before {end}") as values:
        values["holds"] = True
    match end:
        case "crash":
            raise SystemExit("the cause")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3])
