"""One worker process: started in its process group, followed through its log, ended with us."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.progress import (
    NOTE_SIGN,
    PHASE_SUFFIX,
    SIGN,
    WARNING_SIGN,
    read_faults,
    read_lines,
)
from pipeline.step import Step

ENVIRONMENT = {
    # Threads that spin while they wait make torch ten times slower on a CPU that others use too.
    # torch reads this when it is loaded.
    "OMP_WAIT_POLICY": "passive",
    # glibc returns freed blocks to the machine at once only from this size on (in bytes), and by
    # itself raises it to 32 MiB: smaller tensors then stay in the process as holes. A training of
    # 135M parameters on a CPU took 3.90 GiB with the default and 2.92 GiB with this, equally fast.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
TICK = 1.0  # seconds after which the newest line is shown again
STALE = 10  # seconds from which a line with a count is shown with its age


def run_worker(
    record: Path, log: Path, show: Callable[[str], None], warn: Callable[[str], None]
) -> int:
    """Run one worker in a new process group. Its standard input is a pipe from us: it dies with us.

    Its newest progress line is shown, again each second while nothing new comes. Warnings are shown
    at once, since the user may want to stop the run.
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
    """Send SIGTERM, wait, then SIGKILL. The worker's watcher ends its children."""
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(GRACE)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


class LogWatch:
    """The new whole lines of a growing log at each poll."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic):
        self._file, self._partial_line = path.open("r", errors="replace"), ""
        self._clock = clock
        self._newest, self._newest_at = f"starting{PHASE_SUFFIX}", clock()
        self._shown_at = self._newest_at

    def poll(self, show: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Show the newest progress line, also while it stays the newest, and every warning."""
        text = self._partial_line + self._file.read()
        whole, _, self._partial_line = text.rpartition("\n")
        lines, now = whole.splitlines(), self._clock()
        for text in read_lines(lines, WARNING_SIGN):
            warn(f"{WARNING_SIGN} {text}")
        progress = read_lines(lines, SIGN)
        if progress:
            self._newest, self._newest_at = progress[-1], now
        if progress or now - self._shown_at >= TICK:
            self._shown_at = now
            show(_add_age(self._newest, int(now - self._newest_at)))


def _add_age(line: str, seconds: int) -> str:
    """`starting the vLLM engine, 40 s`; `sample 3/9 prompts · 0:21 left · 15 s ago`."""
    if line.endswith(PHASE_SUFFIX):
        phase = line.removesuffix(PHASE_SUFFIX)
        return f"{phase}, {seconds} s" if seconds else phase
    return f"{line} · {seconds} s ago" if seconds >= STALE else line


def read_summary_lines(log: Path) -> list[str]:
    """The notes of a finished worker, such as the funnel of the pairs, with their sign."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(f"{NOTE_SIGN} ")]


def describe_failure(step: Step, fingerprint: str, code: int, log: Path) -> str:
    """Why a worker failed: its own messages, or its last lines, and the path of the log."""
    lines = log.read_text(errors="replace").splitlines()
    where = f"{step.stage}/{fingerprint}"
    if faults := read_faults(lines):
        return f"{where}: {faults}\n  The whole log: {log}"
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    tail = [f"    {line}" for line in lines if not line.startswith(f"{SIGN} ")][-12:]
    head = f"{where} failed: {cause}{hint}." + (" Its last lines:" if tail else "")
    advice = ["  Run the same command to resume."] if code < 0 else []
    return "\n".join([head, *tail, *advice, f"  The whole log: {log}"])
