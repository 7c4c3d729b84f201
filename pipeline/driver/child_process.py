"""One worker process: started in a group of its own, watched through its log, ended with us; and its last words."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.progress import PHASE_SUFFIX, SIGN
from pipeline.step import Step

ENVIRONMENT = {
    # Threads that spin while they wait make torch ten times slower on a CPU that others use too; read as it is loaded.
    "OMP_WAIT_POLICY": "passive",
    # glibc gives a freed block back to the machine at once only from this size on (bytes), and raises it to 32 MiB by
    # itself: the tensors of a step, smaller than that, then stay with the process as holes between those that are kept.
    # A training of 135M parameters on a CPU came to 3.90 GiB with that and comes to 2.92 GiB without, at equal speed.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
WARNING_SIGN = "! "  # begins a line of a worker's log that a person has to see
GRACE = 10.0  # seconds until a worker that does not die of SIGTERM is killed
TICK = 1.0  # seconds after which the newest line is shown again, with how old it is
STALE = 10  # seconds from which a line that counts something is shown with its age


def run_worker(
    record: Path, log: Path, show: Callable[[str], None], warn: Callable[[str], None]
) -> int:
    """One worker in a process group of its own; its standard input is our pulse, so that it dies with us.

    Its newest progress line is shown as it runs, again each second while nothing new comes, and each warning at once:
    a person may want to stop it.
    """
    command = [sys.executable, "-m", "pipeline.driver.worker", str(record), "--follow"]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command,
            env={**ENVIRONMENT, **os.environ},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watch = LogWatch(log)
    try:
        while worker.poll() is None:
            time.sleep(0.05)
            watch.poll(show, warn)
    except BaseException:
        stop_worker(worker)
        raise
    watch.poll(show, warn)
    return worker.returncode


def stop_worker(worker: "subprocess.Popen[bytes]") -> None:
    """Ask, wait, insist. What the worker leaves running goes with its watcher."""
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(GRACE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


class LogWatch:
    """What has come to a growing log since it was last looked at, by whole lines."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._file, self._begun = path.open("r", errors="replace"), ""
        self._clock = clock
        self._newest, self._came = f"starting{PHASE_SUFFIX}", clock()
        self._shown = self._came

    def poll(self, show: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """The newest progress line, also while it stays the newest, and every warning."""
        whole, _, self._begun = (self._begun + self._file.read()).rpartition("\n")
        lines, now = whole.splitlines(), self._clock()
        for line in lines:
            if line.startswith(WARNING_SIGN):
                warn(line)
        progress = [line for line in lines if line.startswith(f"{SIGN} ")]
        if progress:
            self._newest, self._came = progress[-1].removeprefix(SIGN).strip(), now
        if progress or now - self._shown >= TICK:
            self._shown = now
            show(_add_age(self._newest, int(now - self._came)))


def _add_age(line: str, seconds: int) -> str:
    """`starting the vLLM engine, 40 s`; `sample 3/9 prompts · 0:21 left · 15 s ago`."""
    if line.endswith(PHASE_SUFFIX):
        phase = line.removesuffix(PHASE_SUFFIX)
        return f"{phase}, {seconds} s" if seconds else phase
    return f"{line} · {seconds} s ago" if seconds >= STALE else line


def read_summary_lines(log: Path) -> list[str]:
    """What a finished worker has to show: its lines that begin with `│`, such as the funnel of the pairs."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.startswith("│ ")]


def describe_failure(step: Step, fingerprint: str, code: int, log: Path) -> str:
    """What a person needs to go on: the worker's own words, or its last lines, and the log's path."""
    lines = log.read_text(errors="replace").splitlines()
    where = f"{step.stage}/{fingerprint}"
    if words := extract_faults(lines):
        return f"{where}: {words}\n  The whole log: {log}"
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    tail = [f"    {line}" for line in lines if not line.startswith(f"{SIGN} ")][-12:]
    head = f"{where} failed: {cause}{hint}." + (" Its last lines:" if tail else "")
    advice = ["  The same command goes on from here."] if code < 0 else []
    return "\n".join([head, *tail, *advice, f"  The whole log: {log}"])


def extract_faults(lines: list[str]) -> str:
    """What the worker said last: each fault from its `✗` on, with the indented lines under it."""
    said: list[str] = []
    speaks = False
    for line in lines:
        if line.startswith("✗ ") and not speaks:
            said = []
        speaks = line.startswith("✗ ") or (speaks and line.startswith("  "))
        said += [line.removeprefix("✗ ")] if speaks else []
    return "\n".join(said)
