"""What this machine has: devices, their free memory and what they compute in.

Asked of the kernel and of the driver's own tool, which takes no memory of the devices.
"""

import functools
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
MIB = 1 << 20
# Peak of dense bfloat16, operations a second, by a part of the name; a training reaches about EFFICIENCY of it.
SPEEDS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "A10": 125e12,
}
EFFICIENCY = 0.35
PROC = Path("/proc")
AUTO = "auto"
# bfloat16 is computed from this compute capability on (Ampere); a V100 or T4 only converts it.
BFLOAT16_GPU = 8.0
# Flags of /proc/cpuinfo. Without one of them torch and vLLM convert each number to float32 and back.
BFLOAT16_CPU = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    free: int  # what no process holds
    capability: float  # 0: the driver's tool does not tell it


def list_all_gpus() -> list[Gpu]:
    fields = ["name", "memory.total", "memory.free", "compute_cap"]
    # Drivers before 2022 do not know compute_cap, and answer nothing at all when it is asked.
    rows = _query_nvidia_smi(*fields) or [[*row, ""] for row in _query_nvidia_smi(*fields[:3])]
    return [_parse_gpu(*row) for row in rows if row[1].isdigit()]


def _query_nvidia_smi(*fields: str) -> list[list[str]]:
    asked = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            asked, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(", ", len(fields) - 1) for line in listed.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _parse_gpu(name: str, total: str, free: str, capability: str) -> Gpu:
    known = re.fullmatch(r"\d+\.\d+", capability.strip())
    there = int(total) * MIB
    return Gpu(
        name,
        there,
        int(free) * MIB if free.isdigit() else there,
        float(capability) if known else 0.0,
    )


def list_gpus() -> list[Gpu]:
    """Those that this process may see."""
    found = list_all_gpus()
    if (named := os.environ.get(VISIBLE)) is None:
        return found
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    numbers = [
        int(name) if name.isdigit() else 0 for name in wanted
    ]  # a UUID: one of them, all alike
    return [found[number] for number in numbers if number < len(found)]


def describe_device() -> str:
    """What computes here, in words that keep two machines' speeds apart."""
    found = list_gpus()
    return (
        f"{len(found)} x {found[0].name}"
        if found
        else f"{os.cpu_count()} cores of {platform.machine()}"
    )


def explain_missing_gpus() -> str | None:
    """What to say when a GPU is asked for by number that is not there: torch would silently train on the CPU."""
    there = len(list_all_gpus())
    named = os.environ.get(VISIBLE, "")
    wanted = [int(name) for name in named.split(",") if name.strip().isdigit()]
    if not wanted or max(wanted) < there:
        return None
    return (
        f"{VISIBLE}={named}: there is no GPU {max(wanted)} on this machine, which has {there or 'none'}.\n"
        f"  Give {VISIBLE} the numbers of GPUs that are there (from 0), or {VISIBLE}= to train on the CPU."
    )


# ── what a device computes in ─────────────────────────────────────────────────────────────────────────────────────


def resolve_dtype(asked: str) -> str:
    """`auto` becomes the dtype that the device here computes in; anything else stays."""
    if asked != AUTO:
        return asked
    return "bfloat16" if check_bfloat16()[0] else "float32"


def check_bfloat16() -> tuple[bool, str]:
    """Whether the device here computes in bfloat16, and why, in words."""
    return _check_bfloat16(os.environ.get(VISIBLE))


@functools.cache  # a config asks for each of its models, and each time would start the driver's tool
def _check_bfloat16(visible: str | None) -> tuple[bool, str]:
    if found := list_gpus():
        least = min(found, key=lambda gpu: gpu.capability)
        if least.capability >= BFLOAT16_GPU:
            return True, f"{least.name} computes in it"
        known = f"compute capability {least.capability:g}, and bfloat16 needs {BFLOAT16_GPU:g}"
        return (
            False,
            f"{least.name} has {known if least.capability else 'no compute capability that is known'}",
        )
    if units := BFLOAT16_CPU & read_cpu_flags(PROC):
        return True, f"this CPU has {' and '.join(sorted(units))}"
    return False, "this CPU has no bfloat16 units: neither amx_bf16 nor avx512_bf16"


def read_cpu_flags(proc: Path) -> set[str]:
    """Of the first core; none where the kernel does not tell them as x86's does (macOS, ARM)."""
    told = re.search(r"^flags\s*:(.*)$", _read_text(proc / "cpuinfo"), re.MULTILINE)
    return set(told[1].split()) if told else set()


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_memory() -> tuple[int, str]:
    """Bytes that this process may come to hold, and where: what is free, with what it holds already.

    Of the visible GPU with the least, or of the machine's own memory.
    """
    if found := list_gpus():
        least = min(found, key=lambda gpu: gpu.free)
        return least.free + _measure_process_gpu_memory(), f"free on {least.name}"
    free, where = measure_free_memory(PROC)
    return free + measure_process_memory(PROC), where


def measure_free_memory(proc: Path) -> tuple[int, str]:
    """Bytes of main memory that can still be taken: by the kernel's count and by the limit of each cgroup."""
    return min([_measure_available(proc), *_measure_cgroups(proc)], key=lambda known: known[0])


def _measure_available(proc: Path) -> tuple[int, str]:
    if (size := _read_kilobytes(proc / "meminfo", "MemAvailable")) is not None:
        return size, "free in main memory"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return there, "main memory (how much is free is not known here)"


def measure_process_memory(proc: Path) -> int:
    """What this process has of main memory, without the files that it maps: those can be dropped."""
    return _read_kilobytes(proc / "self" / "status", "RssAnon") or 0


def _read_kilobytes(file: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _read_text(file), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _measure_process_gpu_memory() -> int:
    """By a process that has loaded torch and opened its device; asking loads neither."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch and torch.cuda.is_initialized() else 0


# Files of a cgroup: the limit, what is in use, and in memory.stat the file cache that the kernel drops first.
CGROUP_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _measure_cgroups(proc: Path) -> Iterator[tuple[int, str]]:
    """For each cgroup from this process's own up to the root: its limit less what is used of it.

    Version 1, version 2, or both at once (hybrid): the memory controller belongs to one of them, and the files of the
    other are not there. A limit counts for everything below it, so the least of them holds.
    """
    for mount, root, kind in _find_cgroup_mounts(proc):
        own = _find_own_cgroup(proc, kind)
        if own is None:
            continue
        inside = (
            own.removeprefix(root) if root != "/" else own
        )  # a container may see a part of the tree alone
        folder = mount / inside.strip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(mount) and (left := _measure_left(each, kind)) is not None:
                yield left, f"free below the limit of {each}"


def _find_cgroup_mounts(proc: Path) -> Iterator[tuple[Path, str, str]]:
    """Where the tree of the memory controller is mounted, which part of the tree that is, and its version."""
    for line in _read_text(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            root, mount = (
                re.sub(r"\\(\d{3})", lambda o: chr(int(o[1], 8)), at)
                for at in before.split(" ")[3:5]
            )
            yield Path(mount), root, kind


def _find_own_cgroup(proc: Path, kind: str) -> str | None:
    """This process's path in the tree: `0::PATH` of version 2, `N:memory:PATH` of version 1."""
    for line in _read_text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if (
            (number == "0" and not controllers)
            if kind == "cgroup2"
            else "memory" in controllers.split(",")
        ):
            return path
    return None


def _measure_left(folder: Path, kind: str) -> int | None:
    limit, usage, cache = CGROUP_FILES[kind]
    most, used = (_read_text(folder / name).strip() for name in (limit, usage))
    if not (most.isdigit() and used.isdigit()):  # `max`, or not a cgroup that limits memory
        return None
    dropped = re.search(rf"^{cache} (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE)
    return max(0, int(most) - int(used) + (int(dropped[1]) if dropped else 0))


def _read_text(file: Path) -> str:
    """Empty where it is not there or may not be read."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def estimate_speed() -> float | None:
    """Operations a second that a training reaches on one of the GPUs; None where nobody knows."""
    names = [gpu.name for gpu in list_gpus()]
    known = [peak for part, peak in SPEEDS.items() if names and part in names[0]]
    return max(known) * EFFICIENCY if known else None
