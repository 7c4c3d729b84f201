"""On a node of Ray: what a task does there. Its process owns the child that it starts."""

import os
import socket
import sys
from pathlib import Path
from typing import Any

from pipeline.driver.cluster.node import RESTARTS, run_module
from pipeline.errors import DONE, FAILED
from pipeline.hashing import hash_code
from pipeline.progress import PHASE_SUFFIX, SIGN

STARTING = f"{SIGN} starting on "
THREADS = "OMP_NUM_THREADS"  # Ray sets it to a task's cores; the results of CPUs depend on it
GPUS = "CUDA_VISIBLE_DEVICES"


def run_step(
    words: list[str], log: str, folder: str, environment: dict[str, str], above: dict[str, str]
) -> int:
    """Once. Ray starts it again where its node or process was lost, each time with this line."""
    with Path(log).open("a+b") as output:
        output.seek(0)
        if output.read().decode(errors="replace").count(STARTING) > RESTARTS:
            output.write(f"It was started {RESTARTS + 1} times, and lost each time.\n".encode())
            return FAILED
        output.write(f"{STARTING}{socket.gethostname()}{PHASE_SUFFIX}\n".encode())
        output.flush()
        return run_module(words, Path(folder), _complete(environment, above), output)


def run_helper(
    words: list[str], log: str, folder: str, environment: dict[str, str], above: dict[str, str]
) -> int:
    """Again where it crashed."""
    code = FAILED
    with Path(log).open("ab") as output:
        for _ in range(RESTARTS + 1):
            code = run_module(words, Path(folder), _complete(environment, above), output)
            if code == DONE:
                break
    return code


def _complete(environment: dict[str, str], above: dict[str, str]) -> dict[str, str]:
    """The driver's variables where this node has none, cluster.env, and the GPUs that Ray chose."""
    import ray

    ours = {name: value for name, value in os.environ.items() if name != THREADS}
    gpus = ",".join(str(gpu) for gpu in ray.get_gpu_ids())
    return {**environment, **ours, **above, GPUS: gpus}


def look(paths: list[str]) -> dict[str, Any]:
    """What this node sees of the driver's files, and its version of our code."""
    return {
        "host": socket.gethostname(),
        "unseen": [path for path in paths if not Path(path).exists()],
        "code": hash_code(),
        "python": sys.version.split()[0],
    }
