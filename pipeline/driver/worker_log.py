"""The log of a worker: followed while it grows, and read for why a worker failed."""

import signal
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

TICK = 1.0  # seconds after which the newest line is shown again
STALE = 10  # seconds from which a line with a count is shown with its age


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
