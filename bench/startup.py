"""Composing and planning against importing what a run needs: the driver must not pay for torch."""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import Ratio, report, run_in_turn

HOUSE = Path(__file__).parent.parent
PLAN = [sys.executable, "-m", "pipeline", "recipes=smoke", "dry_run=true"]
IMPORTS = [sys.executable, "-c", "from trl import DPOTrainer; from vllm import LLM"]
RUNS = 5


def measure_seconds(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(
        command, check=True, capture_output=True, cwd=HOUSE, env={**os.environ, "TQDM_DISABLE": "1"}
    )
    return time.monotonic() - started


def main() -> None:
    pairs = list(run_in_turn(RUNS, lambda: measure_seconds(PLAN), lambda: measure_seconds(IMPORTS)))
    for ours, theirs in pairs:
        print(f"plan {ours:.2f} s, imports {theirs:.2f} s")
    ratio = Ratio([ours / theirs for ours, theirs in pairs], "< 0.3333")
    report("startup", {"plan_over_imports": ratio})


if __name__ == "__main__":
    main()
