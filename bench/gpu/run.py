"""All checks of a GPU, the most worth first, each in a process by itself with a limit of time.

python -m bench.gpu.run FILE SECONDS [CHECK …]

A check writes its own lines. Here come those of a check that failed, or that there was no time for.
Exit code: 1 if anything failed or did not hold, 2 if a package is missing.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.lines import Values, read_lines, write_line

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "OMP_WAIT_POLICY": "passive",
    # Plugins of the machine's own environment know nothing of this project's settings.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}


PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "trl", "datasets", "bitsandbytes"),
    *("polars", "pydantic", "hydra", "omegaconf", "pandas", "pyarrow", "matplotlib"),
    *("pytest", "pytest_timeout"),
)


@dataclass(frozen=True)
class Check:
    name: str
    words: tuple[str, ...]  # its module, and what else it takes
    least: int  # seconds that must be left, or it is not begun
    most: float  # seconds after which it is ended


USUAL = 570  # seconds for all; whoever gives more gives more to each
# Seconds as expected of an H100, with half a minute for imports from a cold disk.
CHECKS = (
    Check("tests", ("bench.gpu.tests",), 60, 150),
    Check("memory of medium", ("bench.gpu.memory", "medium"), 50, 110),
    Check("speed", ("bench.gpu.speed",), 100, 130),
    Check("kill and resume", ("bench.gpu.resume",), 60, 100),
    Check("memory of large", ("bench.gpu.memory", "large"), 80, 170),
    Check("memory of small", ("bench.gpu.memory", "small"), 35, 80),
    Check("whole run", ("bench.gpu.whole_run",), 80, 150),
)


def run_check(check: Check, file: Path, log: Path, left: float) -> Values:
    """What to write of it beside its own lines: nothing where it ended well."""
    limit = min(check.most, left)
    module, *words = check.words
    deadline = f"{time.time() + limit:.0f}"
    command = [sys.executable, "-m", module, str(file), deadline, *words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            if left < check.most:
                return {"skipped": f"cut after {limit:.0f} s, when the time for all was up"}
            return {"holds": False, "failed": f"not finished within {limit:.0f} s"}
        finally:
            end_group(process)
    if code == 0:
        return {}
    lines = log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return {"holds": False, "failed": f"{cause}: {last[:300]}"}


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End whatever the check has started, too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_checks(checks: list[Check], file: Path, seconds: float) -> list[Values]:
    """The lines that they wrote."""
    deadline, first = time.time() + seconds, count_lines(file)
    for check in checks:
        check = replace(check, most=check.most * max(1, seconds / USUAL))
        started, before = time.time(), count_lines(file)
        print(f"▸ {check.name} …", flush=True)
        left = max(deadline - started, 0)
        if left < check.least:
            rest = {"skipped": f"{left:.0f} s were left, and it needs {check.least}"}
        else:
            rest = run_check(check, file, name_log(file, check), left)
        if rest:
            write_line(file, check.name, rest, time.time() - started)
        for line in read_lines(file)[before:]:
            print(f"  {describe(line)}", flush=True)
    return read_lines(file)[first:]


def count_lines(file: Path) -> int:
    return len(read_lines(file)) if file.exists() else 0


def name_log(file: Path, check: Check) -> Path:
    """Beside the lines: what the check printed."""
    return file.with_name(f"{file.stem}.{check.name.replace(' ', '_')}.log")


def describe(line: Values) -> str:
    values = line["values"]
    why = next((f"{word}: {values[word]}" for word in ("failed", "skipped") if word in values), "")
    result = why or {True: "holds", False: "DOES NOT HOLD", None: ""}[values.get("holds")]
    name = f"{line['check']}: {values['name']}" if "name" in values else line["check"]
    return f"{name}, {line['seconds']} s  {result}".rstrip()


def main(file: Path, seconds: float, names: list[str]) -> int:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        print(f"{', '.join(missing)}: not installed for {sys.executable}.", file=sys.stderr)
        print("  Where there is a network type: bash bench/gpu_wheels.sh", file=sys.stderr)
        print("  Bring the folder wheels/ here and type this again.", file=sys.stderr)
        return 2
    from pipeline.training.launch import expose_one_device

    expose_one_device()
    checks = [check for check in CHECKS if not names or check.name in names]
    lines = run_checks(checks, file, seconds)
    failed = [line for line in lines if line["values"].get("holds") is False]
    print(f"{file}: {len(lines)} lines, {len(failed)} that failed or did not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
