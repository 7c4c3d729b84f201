"""What a worker reports of its Step: lines of its log that have a meaning, and where time goes.

A worker writes them to standard error, which is its step's log. The driver reads them there: it
shows the newest progress line and every warning, keeps notes under the step's line, and quotes the
faults of a worker that failed.
"""

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGN, NOTE_SIGN, WARNING_SIGN, FAULT_SIGN = "▸", "│", "!", "✗"
PHASE_SUFFIX = " …"  # ends the line of a phase without a count; the driver adds its seconds


def format_clock(seconds: float) -> str:
    """`0:09`, `36:00`, `2:10:00`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_progress(text: str) -> None:
    _print_line(SIGN, text)


def print_note(text: str) -> None:
    """A line, or several, for the user to read when the step is done."""
    for line in text.splitlines():
        _print_line(NOTE_SIGN, line)


def print_warning(text: str) -> None:
    """Shown at once, since the user may want to stop the run."""
    _print_line(WARNING_SIGN, text)


def print_faults(message: str) -> None:
    """Why the worker ends: each line is a fault, an indented one continues it."""
    for line in message.splitlines():
        if line.startswith("  "):
            print(line, file=sys.stderr, flush=True)
        else:
            _print_line(FAULT_SIGN, line)


def _print_line(sign: str, text: str) -> None:
    print(sign, text, file=sys.stderr, flush=True)


def read_lines(lines: list[str], sign: str) -> list[str]:
    """The texts of the lines of one kind."""
    return [line.removeprefix(sign).strip() for line in lines if line.startswith(f"{sign} ")]


def read_faults(lines: list[str]) -> str:
    """The last block of faults: lines with the sign, with the indented lines under each."""
    faults: list[str] = []
    is_fault = False
    for line in lines:
        begins = line.startswith(f"{FAULT_SIGN} ")
        if begins and not is_fault:
            faults = []
        is_fault = begins or (is_fault and line.startswith("  "))
        faults += [line.removeprefix(f"{FAULT_SIGN} ")] if is_fault else []
    return "\n".join(faults)


def print_phase(text: str) -> None:
    """Name a phase that takes long and counts nothing, such as an engine's start."""
    print_progress(f"{text}{PHASE_SUFFIX}")


class Progress:
    """`▸ sample 1200/3200 completions · 4100 tok/s · 0:21 left`, once a second and at the end.

    Where units take unequal time, `work` is the total of this attempt, such as the tokens of all
    rows to do, and `work_done` counts it. A caller that knows better sets `time_left`, in words.
    """

    def __init__(self, what: str, total: int, unit: str, work: int | None = None):
        self.what, self.total, self.unit, self.work = what, total, unit, work
        self.done = 0
        self.work_done = 0
        self.time_left: str | None = None
        self._started = time.monotonic()
        self._first = 0
        self._shown = 0.0

    def resume_at(self, done: int) -> None:
        """Count work of an earlier attempt as done, but not in the speed."""
        self.done = self._first = done

    def advance(self, by: int = 1, **facts: str) -> None:
        self.done += by
        now = time.monotonic()
        if self.done < self.total and now - self._shown < 1:
            return
        self._shown = now
        parts = [
            f"{self.what} {self.done}/{self.total} {self.unit}",
            *(f"{name} {value}" for name, value in facts.items()),
        ]
        if left := self.time_left or self._estimate_left(now - self._started):
            parts.append(f"{left} left")
        print_progress(" · ".join(parts))

    def _estimate_left(self, elapsed: float) -> str | None:
        if self.work is not None:
            share = self.work_done / self.work if self.work else 1.0
        else:
            fresh, rest = self.done - self._first, self.total - self.done
            share = fresh / (fresh + rest) if fresh else 0.0
        return format_clock(elapsed / share - elapsed) if share else None


# ── where the time of a Step goes ─────────────────────────────────────────────────────────────────

# To its start, opening models, writing files, waiting; the rest is its work. A worker builds
# one Step at a time, so these figures are of this process.
START, LOAD, WORK, WRITE, WAIT = PHASES = "start", "load", "work", "write", "wait"
_seconds: defaultdict[str, float] = defaultdict(float)
_is_measuring = False
_loads = 0


@contextmanager
def measure_phase(phase: str) -> Iterator[None]:
    """Count the time of a block. A block inside another belongs to the outer one.

    What another thread does takes no time of the Step's own.
    """
    global _is_measuring, _loads
    if _is_measuring or threading.current_thread() is not threading.main_thread():
        yield
        return
    _is_measuring, began = True, time.monotonic()
    _loads += phase == LOAD
    try:
        yield
    finally:
        _is_measuring = False
        _seconds[phase] += time.monotonic() - began


def begin_step() -> None:
    """A new Step."""
    global _loads
    _seconds.clear()
    _loads = 0


def end_start(asked_at: float) -> None:
    """The stage's own code begins: since it was asked for, all but waiting was the start."""
    _seconds[START] = time.time() - asked_at - sum(_seconds.values())


def summarize_time(asked_at: float) -> dict[str, Any]:
    """Seconds of each phase since the Step was asked for, and how many models it has opened."""
    total = time.time() - asked_at
    seconds = {**_seconds, WORK: max(total - sum(_seconds.values()), 0.0)}
    phases = {phase: round(seconds.get(phase, 0.0), 2) for phase in PHASES}
    return {"phases": phases, "models_opened": _loads}
