"""Progress lines of long work. They go to the step's log; the driver shows the newest on screen."""

import sys
import time

SIGN = "▸"
PHASE_SUFFIX = " …"  # ends the line of a phase without a count; the driver adds its seconds


def format_clock(seconds: float) -> str:
    """`0:09`, `36:00`, `2:10:00`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_phase(text: str) -> None:
    """Name a phase that takes long and counts nothing, such as an engine's start."""
    print(f"{SIGN} {text}{PHASE_SUFFIX}", file=sys.stderr, flush=True)


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
        print(SIGN, " · ".join(parts), file=sys.stderr, flush=True)

    def _estimate_left(self, elapsed: float) -> str | None:
        if self.work is not None:
            share = self.work_done / self.work if self.work else 1.0
        else:
            fresh, rest = self.done - self._first, self.total - self.done
            share = fresh / (fresh + rest) if fresh else 0.0
        return format_clock(elapsed / share - elapsed) if share else None
