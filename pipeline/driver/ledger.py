"""What the user sees of a run: one line for each Step, also written to `ledger.json`."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import DROPPED_FILE, write_json
from pipeline.errors import pluralize
from pipeline.step import Step

LEDGER = "ledger.json"
FAILED_SIGN = "✗"
QUIET = 30.0  # seconds between two progress lines without a terminal


class Ledger:
    def __init__(self, run_dir: Path | None):
        self._file = run_dir / LEDGER if run_dir else None
        self._lines: list[dict[str, Any]] = []
        self._terminal = sys.stdout.isatty()
        self._shown = time.monotonic()
        self._running: dict[str, str] = {}  # the line of each Step that runs, by fingerprint
        self._painted = 0  # lines on the terminal that are painted over

    def add_line(
        self,
        sign: str,
        step: Step,
        fingerprint: str,
        seconds: float | None = None,
        note: str = "",
        counted: bool = True,
    ) -> None:
        """`■ sample    round 1   3fa9c1d2e4b5   12.3 s`; in brackets: an earlier run."""
        spent = "" if seconds is None else f"{seconds:.1f} s"
        spent = spent if counted or not spent else f"({spent})"
        self._running.pop(fingerprint, None)
        self._clear()
        name = f"{step.stage:<9} {step.label_text:<13} {fingerprint:<13}"
        print(f"{sign} {name} {spent:>10}  {note}".rstrip(), flush=True)
        entry = {
            "sign": sign,
            "stage": step.stage,
            "label": step.label,
            "fingerprint": fingerprint,
            "seconds": seconds,
        }
        self._lines.append({**entry, "counted": counted})
        self._shown = time.monotonic()
        if self._file:
            write_json(self._file, self._lines)

    def show_running(self, step: Step, fingerprint: str, text: str) -> None:
        """Repaint the lines of all that runs; without a terminal print them every QUIET seconds."""
        line = f"● {step.stage:<9} {step.label_text:<13} {fingerprint:<13} {text}"
        self._running[fingerprint] = line
        if self._terminal:
            # A line that wraps could not be painted over.
            width = shutil.get_terminal_size().columns - 1
            self._clear()
            print("\n".join(line[:width] for line in self._running.values()), end="", flush=True)
            self._painted = len(self._running)
        elif time.monotonic() - self._shown >= QUIET:
            self._shown = time.monotonic()
            print("\n".join(self._running.values()), flush=True)

    def print_note(self, text: str) -> None:
        self._clear()
        print(f"  {text}", flush=True)

    def _clear(self) -> None:
        """The cursor is in the last painted line."""
        if self._terminal:
            print("\r\x1b[K" + "\x1b[A\x1b[K" * (self._painted - 1), end="")
            self._painted = 0


def summarize_cost(cost: dict[str, Any]) -> str:
    """The note of a finished Step: how much it sampled, how fast, and what it dropped."""
    parts = []
    if "tokens_per_second" in cost:
        parts = [
            pluralize(cost["prompts"], "prompt"),
            f"{cost['tokens_per_second']:.0f} tok/s",
            f"{cost['mean_tokens']:.0f} tokens each",
            f"{cost['truncated'] / max(cost['completions'], 1):.1%} truncated",
        ]
    if money := cost.get("money"):
        parts.append(f"money {money:.2f}")
    if "processes" in cost:
        blind = "" if cost.get("watched") else ", which do not measure KL"
        parts.append(f"{cost['processes']} processes{blind}")
    if dropped := cost.get("dropped"):
        parts.append(f"{dropped} dropped ({DROPPED_FILE})")
    return " · ".join(parts)
