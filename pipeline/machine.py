"""What this machine has: devices and their memory, asked of the driver's own tool, which takes no memory of them."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
MIB = 1 << 20
# Peak of dense bfloat16, operations a second, by a part of the name; a training reaches about EFFICIENCY of it.
SPEEDS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "A10": 125e12}
EFFICIENCY = 0.35
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int


def all_gpus() -> list[Gpu]:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(", ", 1) for line in listed.splitlines()]
    return [Gpu(row[0], int(row[1]) * MIB) for row in rows if len(row) == 2 and row[1].isdigit()]


def gpus() -> list[Gpu]:
    """Those that this process may see."""
    found = all_gpus()
    if (named := os.environ.get(VISIBLE)) is None:
        return found
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    numbers = [int(name) if name.isdigit() else 0 for name in wanted]  # a UUID: one of them, all alike
    return [found[number] for number in numbers if number < len(found)]


def device() -> str:
    """What computes here, in words that keep two machines' speeds apart."""
    found = gpus()
    return f"{len(found)} x {found[0].name}" if found else f"{os.cpu_count()} cores of {platform.machine()}"


def missing_gpus() -> str | None:
    """What to say when a GPU is asked for by number that is not there: torch would silently train on the CPU."""
    there = len(all_gpus())
    named = os.environ.get(VISIBLE, "")
    wanted = [int(name) for name in named.split(",") if name.strip().isdigit()]
    if not wanted or max(wanted) < there:
        return None
    return (
        f"{VISIBLE}={named}: there is no GPU {max(wanted)} on this machine, which has {there or 'none'}.\n"
        f"  Give {VISIBLE} the numbers of GPUs that are there (from 0), or {VISIBLE}= to train on the CPU."
    )


def memory() -> tuple[int, str]:
    """Bytes that one process may fill, and where: the smallest visible GPU's, or the machine's own."""
    if found := gpus():
        least = min(found, key=lambda gpu: gpu.memory)
        return least.memory, least.name
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(there, int(limit)) if limit.isdigit() else there, "main memory"


def speed() -> float | None:
    """Operations a second that a training reaches on one of the GPUs; None where nobody knows."""
    names = [gpu.name for gpu in gpus()]
    known = [peak for part, peak in SPEEDS.items() if names and part in names[0]]
    return max(known) * EFFICIENCY if known else None
