"""What this machine is taken to have: what its devices compute in, and how much memory is free."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import hardware
from pipeline.driver import child_process
from pipeline.driver.run import run_point
from pipeline.errors import DONE
from pipeline.plan import plan
from pipeline.preflight import capacity
from tests.support.house import SMALL, composed, fingerprints

MIB, GIB = 1 << 20, 1 << 30
# Every knob that holds the dtype of some model, on one command line.
EVERYWHERE = [
    "prompts=playground", "sample.per_round=100",
    "sft=train", "base=checkpoint", "base.model=hub/model",
    f"base.revision={'0' * 40}", "reward=train", "preferences@reward.data=playground",
    "init=best_of_n", "best_of_n=default",
    "adapter=qlora", "score=reward", "pair.scorer=reward",
]  # fmt: skip


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """A machine without GPU whose first core has these flags."""

    def put(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(
            f"processor\t: 0\nflags\t\t: fpu sse2 {flags}\nbugs\t\t: amx_bf16\n"
        )
        monkeypatch.setattr(hardware, "PROC", tmp_path)
        monkeypatch.setattr(hardware, "list_all_gpus", list)
        hardware._check_bfloat16.cache_clear()

    yield put
    hardware._check_bfloat16.cache_clear()


# ── dtype ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("flags", "dtype", "reason"),
    [
        ("avx2", "float32", "this CPU has no bfloat16 units"),
        ("avx2 avx512f avx512_vnni", "float32", "this CPU has no bfloat16 units"),
        ("avx512f avx512_bf16", "bfloat16", "this CPU has avx512_bf16"),
        ("amx_bf16 amx_tile", "bfloat16", "this CPU has amx_bf16"),
    ],
)
def test_auto_is_what_the_cpu_computes_in(cpu, flags, dtype, reason):
    cpu(flags)
    assert hardware.resolve_dtype("auto") == dtype
    assert reason in hardware.check_bfloat16()[1]
    assert [hardware.resolve_dtype(asked) for asked in ("float32", "bfloat16", "float16")] == [
        "float32", "bfloat16", "float16",
    ]  # fmt: skip


def test_a_cpu_whose_flags_are_not_told_is_taken_to_have_no_units(tmp_path, cpu, monkeypatch):
    cpu("")
    monkeypatch.setattr(hardware, "PROC", tmp_path / "none")
    assert hardware.resolve_dtype("auto") == "float32"


@pytest.mark.parametrize(
    ("capability", "visible", "dtype", "reason"),
    [
        ("8.0", None, "bfloat16", "NVIDIA H100 80GB HBM3 computes in it"),
        ("7.5", None, "float32", "compute capability 7.5, and bfloat16 needs 8"),
        ("12.0", None, "bfloat16", "computes in it"),
        ("[N/A]", None, "float32", "the compute capability of NVIDIA H100 80GB HBM3 is not known"),
        ("9.0", "", "float32", "this CPU has no bfloat16 units"),
    ],
)
def test_auto_is_what_the_gpu_computes_in(
    cpu, card, monkeypatch, capability, visible, dtype, reason
):
    asked = hardware.list_all_gpus
    cpu("avx2")
    monkeypatch.setattr(hardware, "list_all_gpus", asked)
    card(80, capability=capability, visible=visible)
    assert hardware.resolve_dtype("auto") == dtype and reason in hardware.check_bfloat16()[1]


def test_a_driver_that_does_not_know_compute_capability_still_tells_of_its_gpus(tmp_path, card):
    card(24)
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in *compute_cap*) exit 2;; esac\necho "Tesla V100, 16384, 15000"\n'
    )
    assert hardware.list_all_gpus() == [hardware.Gpu("Tesla V100", 16384 * MIB, 15000 * MIB, 0.0)]


def test_identity_holds_what_auto_became(cpu):
    cpu("avx2")
    here, float32 = fingerprints(*EVERYWHERE), fingerprints(*EVERYWHERE, "dtype=float32")
    assert here == float32
    cpu("amx_bf16")
    there, bfloat16 = fingerprints(*EVERYWHERE), fingerprints(*EVERYWHERE, "dtype=bfloat16")
    assert there == bfloat16
    shared = {name for name, own in here.items() if there[name] == own}
    assert shared == {"prompts@0"}, (
        "no step that opens a model is shared by two machines that compute differently"
    )


def test_no_block_of_a_config_holds_auto(cpu):
    cpu("avx2")
    cfg = composed(*EVERYWHERE)
    steps = plan(cfg).ancestors()
    assert cfg.dtype == "auto", "as it was asked for"
    held = [
        value
        for step in steps
        for value in re.findall(r"'dtype': '(\w+)'", str(step.config.model_dump()))
    ]
    assert len(held) > 10 and set(held) == {"float32"}
    assert composed(*SMALL, "train.dtype=auto", "dtype=float32").train.dtype == "float32"


def test_what_a_recipe_gives_is_never_resolved(cpu):
    """The golden fingerprints of the smoke run are of every machine."""
    found = []
    for flags in ("avx2", "amx_bf16"):
        cpu(flags)
        found.append(fingerprints("recipes=smoke"))
    assert found[0] == found[1]


def test_a_plan_tells_once_what_auto_became(cpu, tmp_path, capsys):
    cpu("avx2")
    words = [*SMALL, f"store={tmp_path / 'store'}", "dry_run=true"]
    assert run_point(composed(*words)) == DONE
    shown = capsys.readouterr()
    assert shown.out.count("dtype auto: float32 (this CPU has no bfloat16 units") == 1
    assert "=bfloat16" not in shown.err
    assert run_point(composed(*words, "dtype=float32")) == DONE
    assert "dtype auto" not in capsys.readouterr().out


def test_bfloat16_where_the_device_has_no_units_is_taken_with_a_warning(cpu, tmp_path, capsys):
    cpu("avx2")
    words = [*SMALL, f"store={tmp_path / 'store'}", "dry_run=true"]
    asked = composed(*words, "dtype=bfloat16")
    assert asked.train.dtype == "bfloat16"
    assert run_point(asked) == DONE
    warnings = [line for line in capsys.readouterr().err.splitlines() if "bfloat16 units" in line]
    assert (
        len(warnings) == 1
        and warnings[0].startswith("! ")
        and ".dtype=bfloat16 and " in warnings[0]
    )
    one = composed(*words, "dtype=float32", "sample.backend.dtype=bfloat16")
    [said] = capacity.warn_of_slow_dtypes(plan(one).ancestors())
    assert said.startswith("! sample.backend.dtype=bfloat16: this CPU has no bfloat16 units")
    cpu("amx_bf16")
    assert not list(capacity.warn_of_slow_dtypes(plan(asked).ancestors()))


# ── memory ────────────────────────────────────────────────────────────────────────────────────────


class Machine:
    """A /proc and cgroup trees of our own: what the kernel would show of them."""

    def __init__(self, root: Path, available: int = 16 * GIB):
        self.root, self.proc = root, root / "proc"
        self.write(
            self.proc / "meminfo",
            f"MemTotal: {32 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n",
        )
        self.write(self.proc / "self" / "status", f"Name:\tpython\nRssAnon:\t{GIB >> 10} kB\n")

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mounts(self, *mounts: tuple[str, str, str, str]) -> None:
        """Each a place below our root, the part of the tree that is seen there, the kind and its
        options."""
        lines = [
            f"3{n} 23 0:{n} {seen} {self.root / at} rw,relatime - {kind} {kind} {options}"
            for n, (at, seen, kind, options) in enumerate(mounts)
        ]
        lines.append(f"99 23 0:99 / {self.root} rw - ext4 /dev/sda1 rw,errors=memory")
        self.write(self.proc / "self" / "mountinfo", "\n".join(lines) + "\n")

    def belongs(self, *lines: str) -> None:
        self.write(self.proc / "self" / "cgroup", "\n".join(lines) + "\n")

    def v2(self, at: str, most: int | str, used: int, cache: int | None = 0) -> None:
        self.write(self.root / at / "memory.max", f"{most}\n")
        self.write(self.root / at / "memory.current", f"{used}\n")
        if cache is not None:
            self.write(
                self.root / at / "memory.stat", f"anon 5\ninactive_file {cache}\nactive_file 7\n"
            )

    def v1(self, at: str, most: int, used: int, cache: int = 0) -> None:
        self.write(self.root / at / "memory.limit_in_bytes", f"{most}\n")
        self.write(self.root / at / "memory.usage_in_bytes", f"{used}\n")
        self.write(
            self.root / at / "memory.stat", f"inactive_file 1\ntotal_inactive_file {cache}\n"
        )

    def free(self) -> int:
        return hardware.measure_free_memory(self.proc)[0]


NO_LIMIT = 9223372036854771712  # as version 1 writes it


def test_free_is_what_the_kernel_says_where_no_cgroup_limits(tmp_path):
    here = Machine(tmp_path)
    assert hardware.measure_free_memory(here.proc) == (16 * GIB, "free in main memory")
    here.mounts(("cg", "/", "cgroup2", "rw"))
    here.belongs("0::/user.slice")
    here.v2("cg/user.slice", "max", 3 * GIB)
    assert here.free() == 16 * GIB


def test_a_machine_that_does_not_tell_what_is_free_says_so(tmp_path):
    free, where = hardware.measure_free_memory(tmp_path)
    assert free > GIB and "not known" in where


def test_a_limit_of_version_2_less_what_is_used_and_cannot_be_dropped(tmp_path):
    here = Machine(tmp_path)
    here.mounts(("cg", "/", "cgroup2", "rw,nsdelegate"))
    here.belongs("0::/docker/abc")
    here.v2("cg/docker/abc", 8 * GIB, 5 * GIB, cache=2 * GIB)
    assert hardware.measure_free_memory(here.proc) == (
        5 * GIB,
        f"free below the limit of {tmp_path / 'cg/docker/abc'}",
    )
    (tmp_path / "cg/docker/abc/memory.stat").unlink()
    assert here.free() == 3 * GIB
    here.v2("cg/docker/abc", 8 * GIB, 9 * GIB)
    assert here.free() == 0, "used may exceed a limit that was lowered"


def test_the_least_of_nested_limits_holds_wherever_it_stands(tmp_path):
    here = Machine(tmp_path)
    here.mounts(("cg", "/", "cgroup2", "rw"))
    here.belongs("0::/slurm/job_7/step_0")
    here.v2("cg/slurm/job_7/step_0", "max", 1 * GIB)
    here.v2("cg/slurm/job_7", 6 * GIB, 2 * GIB)
    here.v2("cg/slurm", 64 * GIB, 30 * GIB)
    assert here.free() == 4 * GIB
    here.v2("cg/slurm", 32 * GIB, 30 * GIB)
    assert here.free() == 2 * GIB, "neighbours below the same limit have taken the rest"
    here.v2("cg/slurm/job_7/step_0", 2 * GIB, 1 * GIB)
    assert here.free() == 1 * GIB


def test_a_container_sees_its_own_limit_at_the_root_of_the_tree(tmp_path):
    here = Machine(tmp_path)
    here.mounts(("cg", "/", "cgroup2", "rw"))
    here.belongs("0::/")
    here.v2("cg", 4 * GIB, 1 * GIB)
    assert here.free() == 3 * GIB
    here.belongs("0::/kubepods/pod1")  # the host's path, which is not mounted here
    assert here.free() == 3 * GIB
    here.mounts(("cg", "/kubepods/pod1", "cgroup2", "rw"))
    here.belongs("0::/kubepods/pod1/own")
    here.v2("cg/own", 2 * GIB, 1 * GIB)
    assert here.free() == 1 * GIB


def test_limits_of_version_1_and_of_its_parents(tmp_path):
    here = Machine(tmp_path)
    here.mounts(
        ("cg/cpu", "/", "cgroup", "rw,cpu,cpuacct"), ("cg/memory", "/", "cgroup", "rw,memory")
    )
    here.belongs("4:memory:/docker/abc", "1:cpu,cpuacct:/elsewhere", "2:name=systemd:/docker/abc")
    here.v1("cg/memory", NO_LIMIT, 20 * GIB)
    here.v1("cg/memory/docker/abc", NO_LIMIT, 1 * GIB)
    here.v1("cg/cpu/elsewhere", 1 * GIB, 0)
    assert here.free() == 16 * GIB
    here.v1("cg/memory/docker/abc", 8 * GIB, 7 * GIB, cache=2 * GIB)
    assert here.free() == 3 * GIB
    here.v1("cg/memory/docker", 10 * GIB, 9 * GIB)
    assert here.free() == 1 * GIB


def test_in_a_hybrid_tree_the_one_with_the_memory_controller_counts(tmp_path):
    here = Machine(tmp_path)
    here.mounts(
        ("cg/unified", "/", "cgroup2", "rw"), ("cg/memory", "/", "cgroup", "rw,memory,hugetlb")
    )
    here.belongs("4:memory,hugetlb:/job", "0::/user.slice")
    here.write(tmp_path / "cg/unified/user.slice/cgroup.procs", "1\n")
    here.v1("cg/memory/job", 3 * GIB, 1 * GIB)
    assert here.free() == 2 * GIB


def test_files_that_are_missing_or_nonsense_limit_nothing(tmp_path):
    here = Machine(tmp_path)
    here.mounts(("cg", "/", "cgroup2", "rw"), ("cg/memory", "/", "cgroup", "rw,memory"))
    assert here.free() == 16 * GIB, "no /proc/self/cgroup"
    here.belongs("0::/a/b")
    assert here.free() == 16 * GIB, "no such folder"
    here.v2("cg/a/b", 4 * GIB, 1 * GIB)
    (tmp_path / "cg/a/b/memory.current").write_text("many\n")
    assert here.free() == 16 * GIB
    (tmp_path / "cg/a/b/memory.current").write_bytes(b"\xff\xfe")
    assert here.free() == 16 * GIB


def test_a_mount_whose_name_has_a_space_is_found(tmp_path):
    here = Machine(tmp_path)
    here.mounts(("c\\040g", "/", "cgroup2", "rw"))
    here.belongs("0::/a")
    here.v2("c g/a", 2 * GIB, 1 * GIB)
    assert here.free() == 1 * GIB


def test_a_process_may_come_to_hold_what_is_free_and_what_it_holds_already(
    tmp_path, monkeypatch, card
):
    card()
    monkeypatch.setattr(hardware, "PROC", Machine(tmp_path / "own").proc)
    assert hardware.measure_memory() == (17 * GIB, "free in main memory")


def test_memory_of_a_gpu_that_another_process_uses_is_not_there(card):
    card(80, free=30)
    assert hardware.measure_memory() == (30 * GIB, "free on NVIDIA H100 80GB HBM3")
    card(80)
    assert hardware.measure_memory()[0] == 80 * GIB


# What a step of training does to the allocator: tensors come and go between others that are kept.
# Prints the MiB that stay with the process once all but the kept ones (10 MiB) are freed.
COME_AND_GO = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def block(size):
    at = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(at, 1, size)
    return at
def held():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024
libc.free(block(30 << 20))  # the largest that has been freed is what glibc learns from
before, passing, kept = held(), [], []
for _ in range(50):
    passing.append(block(4 << 20))
    kept.append(block(200 << 10))
for at in passing:
    libc.free(at)
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_worker_gives_back_what_a_step_has_freed():
    def stays(environment: dict[str, str]) -> float:
        here = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        run = [sys.executable, "-c", COME_AND_GO]
        return float(
            subprocess.run(
                run, env={**here, **environment}, check=True, stdout=subprocess.PIPE
            ).stdout
        )

    assert stays(child_process.ENVIRONMENT) < 20
    assert stays({}) > 100, "as it is without, or the setting is needed no more"
