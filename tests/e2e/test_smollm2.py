"""The recipe smollm2 from a GGUF file to its report, on a tiny model in place of SmolLM2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.house import HOUSE
from tests.support.tiny_gguf import write_gguf

SMALL = [
    "recipes=smollm2",
    "backend=transformers",
    "prompts.rows=60",
    "prompts.split={dev: 4, test: 8}",
    "sample.per_round=24",
    "limits={prompt: 800, completion: 24}",
    "train.batch=4",
    "train.guards.prompts=2",
    "evaluate.resamples=500",
]


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *SMALL, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOUSE), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.model
@pytest.mark.slow
def test_the_recipe_runs_from_a_gguf_file_to_its_report(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", context=2048)
    output = run(tmp_path, "sft.path=tiny.gguf")
    report = json.loads((tmp_path / output.splitlines()[-1]).with_suffix(".json").read_text())
    assert [model["name"] for model in report["models"]] == ["sft", "round-1"]
    gap = next(row for row in report["differences"] if row["model"] == "round-1")
    assert gap["scorer"] == "ifeval" and gap["n"] == 8
    (card,) = tmp_path.glob("store/train/*/README.md")
    assert "license: apache-2.0" in card.read_text()
    again = run(tmp_path, "sft.path=tiny.gguf")
    assert not [line for line in again.splitlines() if line.startswith("■")]
