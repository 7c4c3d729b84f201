"""A run by the command line, from untrained weights to a DPO model, sampled with transformers.

python -m bench.gpu.whole_run FILE DEADLINE

The smoke recipe with one epoch of SFT, up to its first training: preflight, driver and workers on
this machine. Its model is tiny, so most of a step's seconds are the start of its process.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.gpu.lines import Values, time_line
from bench.gpu.models import HAS_GPU

HOUSE = Path(__file__).parents[2]
WORDS = [
    *("recipes=smoke", "rounds=1", "until=train", "backend=transformers", "dtype=auto"),
    "sft.epochs=1",
]
TOY = [
    *("base.layers=1", "sft.data.rows=200", "prompts.rows=200", "sample.per_round=30"),
    *("prompts.split={dev: 10, test: 20}", "pair.dev={share: 0.1, min: 4, max_share: 0.2}"),
    *("train.batch=2", "train.runtime.micro_batch=2"),
]


def run(folder: Path) -> Values:
    """Seconds of each step, and what sampling by transformers reached."""
    words = WORDS if HAS_GPU else [*WORDS, *TOY]
    places = [str(HOUSE), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        check=True,
    )
    [ledger] = folder.glob("runs/smoke/*/ledger.json")
    [cost] = folder.glob("store/sample/*/cost.json")
    steps = {line["stage"]: line["seconds"] for line in json.loads(ledger.read_text())}
    speed = json.loads(cost.read_text())["tokens_per_second"]
    return {"seconds": steps, "sampled_tokens_per_second": speed, "holds": "train" in steps}


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as name,
        time_line(Path(sys.argv[1]), "whole run") as values,
    ):
        values |= run(Path(name))
