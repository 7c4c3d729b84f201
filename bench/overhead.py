"""What a Step costs before its stage begins: some 30 toy Steps through the real driver.

The toys do nothing, and need torch, transformers and TRL as the stages do. Two runs from nothing,
with workers from the prepared parent and without.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from measure import Ratio, report, run_in_turn

HOUSE = Path(__file__).parent.parent
LIBRARIES = "transformers.generation transformers.trainer peft trl.trainer.dpo_trainer"
TOYS = {
    "PYTHONPATH": str(HOUSE),
    "PIPELINE_STAGES": "tests.support.toys",
    "TOY_IMPORT": LIBRARIES,
    "TQDM_DISABLE": "1",
}
RUN = [sys.executable, "-m", "pipeline", "prompts=playground", "sft.model=hub/model"]
RUN += [f"sft.revision={'0' * 40}", "sample.per_round=100", "rounds=3"]
RUNS = 3


def measure_starts(preload: bool) -> tuple[float, list[float]]:
    """Seconds of the whole run, and of each Step's start but the first, which loads beside."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [*RUN, f"preload={str(preload).lower()}"]
        environment = {**os.environ, **TOYS}
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment)
        seconds = time.monotonic() - began
        manifests = [
            json.loads(path.read_text()) for path in Path(folder).glob("store/*/*/manifest.json")
        ]
    starts = [each["cost"]["phases"]["start"] for each in manifests]
    return seconds, sorted(starts)


def main() -> None:
    runs = list(run_in_turn(RUNS, lambda: measure_starts(True), lambda: measure_starts(False)))
    for (with_parent, starts), (without, slow_starts) in runs:
        print(
            f"{len(starts)} steps: with the prepared parent {with_parent:.1f} s, a start"
            f" {statistics.median(starts):.2f} s ({starts[0]:.2f}–{starts[-1]:.2f});"
            f" without {without:.1f} s, a start {statistics.median(slow_starts):.2f} s"
        )
    medians = [statistics.median(starts) for (_, starts), _ in runs]
    whole = [prepared / plain for (prepared, _), (plain, _) in runs]
    report("overhead", {"start_seconds": Ratio(medians, "<= 1"), "whole": Ratio(whole, "<= 0.5")})


if __name__ == "__main__":
    main()
