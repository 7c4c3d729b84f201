"""Runs a model's code: reads it from standard input, limits itself, and reports which tests passed.

This file is run by itself and imports nothing of ours.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

MB = 1 << 20
NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
NO_NETWORK_SIGN = "no network namespace"


def confine(limits: dict[str, int], network: bool, report: Callable[[object], None]) -> None:
    if sys.platform == "linux":
        import ctypes

        system = ctypes.CDLL(None)
        system.prctl(PR_SET_PDEATHSIG, 9)
        namespaces = NEW_USER | NEW_PROCESSES | (0 if network else NEW_NETWORK)
        is_isolated = not system.unshare(namespaces)
        # The child is the first process of its namespace: whatever it starts ends with it.
        if is_isolated and (child := os.fork()):
            os.waitpid(child, 0)
            os._exit(0)
        system.prctl(PR_SET_PDEATHSIG, 9)
        if not is_isolated and not network:
            report(NO_NETWORK_SIGN)
            sys.exit(1)
    elif not network:
        report(NO_NETWORK_SIGN)
        sys.exit(1)
    for kind, limit in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_mb"] * MB),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * MB),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def main() -> None:
    message = json.loads(sys.stdin.buffer.read())
    verdicts = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)

    def report(word: object) -> None:
        print(message["nonce"], word, file=verdicts, flush=True)

    confine(message["limits"], message["network"], report)
    names: dict[str, Any] = {"__name__": "answer"}
    exec(compile(message["code"], "answer.py", "exec"), names)
    for number, test in enumerate(message["tests"]):
        try:
            exec(compile(test, f"test_{number}.py", "exec"), dict(names))
        except BaseException:  # also SystemExit: leaving early does not pass a test
            continue
        report(number)


if __name__ == "__main__":
    main()
