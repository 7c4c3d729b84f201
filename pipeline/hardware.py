"""What this machine has: devices, their free memory, and the dtypes that they compute in.

The kernel and nvidia-smi answer, which take no memory of the devices.
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
# Peak operations a second in dense bfloat16, by a part of the name.
# A training reaches about EFFICIENCY of it.
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
# GPUs compute in bfloat16 from this compute capability on (Ampere); a V100 or T4 only converts it.
BFLOAT16_GPU = 8.0
# Flags of /proc/cpuinfo. Without any of them torch and vLLM convert each number to float32 and
# back.
BFLOAT16_CPU = {"amx_bf16", "avx512_bf16"}


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    free: int  # bytes that no process holds
    capability: float  # 0: not known


def list_all_gpus() -> list[Gpu]:
    fields = ["name", "memory.total", "memory.free", "compute_cap"]
    # Drivers before 2022 do not know compute_cap, and answer nothing if it is among the fields.
    rows = _query_nvidia_smi(*fields) or [[*row, ""] for row in _query_nvidia_smi(*fields[:3])]
    return [_parse_gpu(*row) for row in rows if row[1].isdigit()]


def _query_nvidia_smi(*fields: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(", ", len(fields) - 1) for line in listing.splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def _parse_gpu(name: str, total: str, free: str, capability: str) -> Gpu:
    is_known = re.fullmatch(r"\d+\.\d+", capability.strip())
    memory = int(total) * MIB
    free_memory = int(free) * MIB if free.isdigit() else memory
    return Gpu(name, memory, free_memory, float(capability) if is_known else 0.0)


def list_gpus() -> list[Gpu]:
    """The GPUs that this process may see."""
    gpus = list_all_gpus()
    if (visible := os.environ.get(VISIBLE)) is None:
        return gpus
    names = [name.strip() for name in visible.split(",") if name.strip()]
    # A UUID counts as the first GPU: the GPUs of a machine are alike.
    numbers = [int(name) if name.isdigit() else 0 for name in names]
    return [gpus[number] for number in numbers if number < len(gpus)]


def describe_device() -> str:
    """What computes here, so described that machines of different speed differ."""
    if gpus := list_gpus():
        return f"{len(gpus)} x {gpus[0].name}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def name_kind(device: str) -> str:
    """A device as described, whatever the number of its GPUs. Processors differ by their cores."""
    return device.partition(" x ")[2] or device


def explain_missing_gpus() -> str | None:
    """The error for a GPU number that does not exist: torch would silently train on the CPU."""
    count = len(list_all_gpus())
    visible = os.environ.get(VISIBLE, "")
    numbers = [int(name) for name in visible.split(",") if name.strip().isdigit()]
    if not numbers or max(numbers) < count:
        return None
    return (
        f"{VISIBLE}={visible}: this machine has no GPU {max(numbers)}: it has {count or 'none'}.\n"
        f"  Give {VISIBLE} numbers of its GPUs (from 0), or {VISIBLE}= to train on the CPU."
    )


# ── the dtypes of a device ────────────────────────────────────────────────────────────────────────


def resolve_dtype(dtype: str) -> str:
    """`auto` becomes the dtype that this device computes in; anything else stays."""
    if dtype != AUTO:
        return dtype
    return "bfloat16" if check_bfloat16()[0] else "float32"


def check_bfloat16() -> tuple[bool, str]:
    """Whether this device computes in bfloat16, and why, in words."""
    return _check_bfloat16(os.environ.get(VISIBLE))


@functools.cache  # a config asks for each of its models, and each call would start nvidia-smi
def _check_bfloat16(visible: str | None) -> tuple[bool, str]:
    if gpus := list_gpus():
        oldest = min(gpus, key=lambda gpu: gpu.capability)
        if oldest.capability >= BFLOAT16_GPU:
            return True, f"{oldest.name} computes in it"
        if not oldest.capability:
            return False, f"the compute capability of {oldest.name} is not known"
        too_low = f"compute capability {oldest.capability:g}, and bfloat16 needs {BFLOAT16_GPU:g}"
        return False, f"{oldest.name} has {too_low}"
    if units := BFLOAT16_CPU & read_cpu_flags(PROC):
        return True, f"this CPU has {' and '.join(sorted(units))}"
    return False, "this CPU has no bfloat16 units: neither amx_bf16 nor avx512_bf16"


def read_cpu_flags(proc: Path) -> set[str]:
    """The flags of the first core; none where the kernel does not list them (macOS, ARM)."""
    flags = re.search(r"^flags\s*:(.*)$", _read_text(proc / "cpuinfo"), re.MULTILINE)
    return set(flags[1].split()) if flags else set()


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


def measure_memory() -> tuple[int, str]:
    """Bytes that this process can hold in all, and where: what is free and what it holds already.

    Of the visible GPU with the least free memory, or of main memory.
    """
    if gpus := list_gpus():
        fullest = min(gpus, key=lambda gpu: gpu.free)
        return fullest.free + _measure_process_gpu_memory(), f"free on {fullest.name}"
    free, where = measure_free_memory(PROC)
    return free + measure_process_memory(PROC), where


def measure_free_memory(proc: Path) -> tuple[int, str]:
    """Bytes of main memory that are free, by the kernel and by the limit of each cgroup."""
    return min([_measure_available(proc), *_measure_cgroups(proc)], key=lambda known: known[0])


def _measure_available(proc: Path) -> tuple[int, str]:
    if (size := _read_kilobytes(proc / "meminfo", "MemAvailable")) is not None:
        return size, "free in main memory"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, "main memory (how much is free is not known here)"


def measure_process_memory(proc: Path) -> int:
    """Main memory of this process, without mapped files, which the kernel can drop."""
    return _read_kilobytes(proc / "self" / "status", "RssAnon") or 0


def _read_kilobytes(file: Path, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _read_text(file), re.MULTILINE)
    return int(match[1]) << 10 if match else None


def _measure_process_gpu_memory() -> int:
    """GPU memory of this process, if it has loaded torch and opened the device. Loads neither."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch and torch.cuda.is_initialized() else 0


# Files of a cgroup: the limit and the usage; and the key in memory.stat of the file cache that the
# kernel drops first.
CGROUP_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _measure_cgroups(proc: Path) -> Iterator[tuple[int, str]]:
    """For each cgroup from this process's up to the root: its limit less what is used of it.

    cgroups have version 1, 2 or both (hybrid). The memory controller belongs to one of them, and
    the other lacks these files. A limit holds for everything below it, so the smallest counts.
    """
    for mount, root, kind in _find_cgroup_mounts(proc):
        own = _find_own_cgroup(proc, kind)
        if own is None:
            continue
        # A container may see only a part of the tree.
        path = own.removeprefix(root) if root != "/" else own
        folder = mount / path.strip("/")
        for cgroup in (folder, *folder.parents):
            if cgroup.is_relative_to(mount) and (left := _measure_left(cgroup, kind)) is not None:
                yield left, f"free below the limit of {cgroup}"


def _find_cgroup_mounts(proc: Path) -> Iterator[tuple[Path, str, str]]:
    """Mounts of the memory controller: where, which part of the tree, and the version."""
    for line in _read_text(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            root, mount = (_unescape(path) for path in before.split(" ")[3:5])
            yield Path(mount), root, kind


def _unescape(path: str) -> str:
    """A path of mountinfo, in which a space is `\\040`."""
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), path)


def _find_own_cgroup(proc: Path, kind: str) -> str | None:
    """This process's path in the tree: `0::PATH` of version 2, `N:memory:PATH` of version 1."""
    for line in _read_text(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        is_version_2 = number == "0" and not controllers
        if is_version_2 if kind == "cgroup2" else "memory" in controllers.split(","):
            return path
    return None


def _measure_left(folder: Path, kind: str) -> int | None:
    limit, usage, cache = CGROUP_FILES[kind]
    total, used = (_read_text(folder / name).strip() for name in (limit, usage))
    if not (total.isdigit() and used.isdigit()):  # `max`, or not a cgroup that limits memory
        return None
    cached = re.search(rf"^{cache} (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE)
    return max(0, int(total) - int(used) + (int(cached[1]) if cached else 0))


def _read_text(file: Path) -> str:
    """Empty where the file is missing or unreadable."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def find_peak() -> float | None:
    """Operations a second that one of the GPUs can do in dense bfloat16; None if not known."""
    names = [gpu.name for gpu in list_gpus()]
    return max((peak for part, peak in SPEEDS.items() if names and part in names[0]), default=None)


def estimate_speed() -> float | None:
    """Operations a second that a training reaches on one of the GPUs; None if not known."""
    peak = find_peak()
    return peak * EFFICIENCY if peak else None
