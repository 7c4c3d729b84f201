"""What a person watching a run sees: one line per Step, kept in `ledger.json` as well."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_json
from pipeline.errors import pluralize
from pipeline.step import Step

QUIET = 30.0  # seconds between two progress lines where there is no terminal


class Ledger:
    def __init__(self, story: Path | None):
        self._file = story / "ledger.json" if story else None
        self._lines: list[dict[str, Any]] = []
        self._terminal = sys.stdout.isatty()
        self._shown = time.monotonic()

    def line(
        self,
        sign: str,
        step: Step,
        fingerprint: str,
        seconds: float | None = None,
        note: str = "",
        counted: bool = True,
    ) -> None:
        """`■ sample    round 1   3fa9c1d2e4b5   12.3 s`; seconds of an earlier run stand in brackets."""
        spent = "" if seconds is None else f"{seconds:.1f} s" if counted else f"({seconds:.1f} s)"
        self._clear()
        print(
            f"{sign} {step.stage:<9} {step.label_text:<13} {fingerprint:<13} {spent:>10}  {note}".rstrip(),
            flush=True,
        )
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
        """Repainted on a terminal; elsewhere a line now and then."""
        line = f"● {step.stage:<9} {step.label_text:<13} {fingerprint:<13} {text}"
        if self._terminal:
            width = (
                shutil.get_terminal_size().columns - 1
            )  # a line that wraps could not be painted over
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)
        elif time.monotonic() - self._shown >= QUIET:
            self._shown = time.monotonic()
            print(line, flush=True)

    def say(self, text: str) -> None:
        self._clear()
        print(f"  {text}", flush=True)

    def _clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="")


def summarize_cost(cost: dict[str, Any]) -> str:
    """What stands beside a finished Step: how much it drew, how fast, how long, and what it dropped."""
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
        parts.append(
            f"{cost['processes']} processes"
            + ("" if cost.get("watched") else ", which do not look at KL")
        )
    if dropped := cost.get("dropped"):
        parts.append(f"{dropped} dropped (dropped.parquet)")
    return " · ".join(parts)
