"""One line now and then about long work: into the step's log, from where the driver shows it on the screen."""

import sys
import time

SIGN = "▸"


class Progress:
    """`▸ sample 1200/3200 completions · 4100 tok/s · 0:21 left`, at most once a second and always at the end."""

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._first = 0
        self._shown = 0.0

    def resume_at(self, done: int) -> None:
        """Work found finished from an earlier attempt: counted as done, not in the speed."""
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
        if fresh := self.done - self._first:
            left = int((now - self._started) / fresh * (self.total - self.done))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        print(SIGN, " · ".join(parts), file=sys.stderr, flush=True)
