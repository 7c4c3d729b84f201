"""DPO and GRPO from one SFT model in one report; GRPO is killed at random and ends the same."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.test_smoke import command, environment

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1500)]
SMALL = [
    "recipes=grpo_vs_dpo",
    "backend=transformers",
    "base.layers=1",
    "sft.data.rows=400",
    "sft.epochs=1",
    "prompts.rows=300",
    "prompts.split={dev: 20, test: 40}",
    "sample.per_round=80",
    "pair.dev={share: 0.1, min: 4, max_share: 0.2}",
    "evaluate.resamples=500",
    "train_in_round.2.runtime.save_every=2",
    "train_in_round.2.eval_every=5",
]


def find_online(folder: Path) -> Path:
    for file in folder.glob("store/train/*/manifest.json"):
        if "request" in json.loads(file.read_text())["config"]:
            return file.parent
    raise AssertionError("no online training is published")


def is_training_online(folder: Path) -> bool:
    steps = folder.glob("store/train/*.partial/step.json")
    online = [step.parent for step in steps if '"request"' in step.read_text()]
    return any((each / "scratch/checkpoints/checkpoints.json").exists() for each in online)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("online")
    driver = subprocess.Popen(
        command(*SMALL), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not is_training_online(folder):
        time.sleep(0.01)
    time.sleep(random.random() * 3)
    driver.send_signal(signal.SIGKILL)
    first, _ = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, first
    return folder, run(folder)


def run(folder: Path) -> str:
    done = subprocess.run(
        command(*SMALL), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_are_in_one_table_with_what_they_drew_and_took(finished):
    folder, output = finished
    report = json.loads((folder / output.splitlines()[-1]).with_name("report.json").read_text())
    models = {model["name"]: model for model in report["models"]}
    assert [*models] == ["base", "sft", "round-1", "round-2"]
    assert all(models[name]["kl"]["mean"] is not None for name in ("round-1", "round-2"))
    dpo, grpo = report["effort"]
    assert (dpo["trainer"], grpo["trainer"]) == ("dpo", "grpo")
    assert dpo["samples"] == grpo["samples"] == 80 * 8
    assert grpo["seconds"] == grpo["training_seconds"] > 0
    assert dpo["seconds"] > dpo["training_seconds"]
    page = (folder / output.splitlines()[-1]).with_name("report.md").read_text()
    assert "Answers and time of each round" in page
    assert [pairs["round"] for pairs in report["funnel"]["pairs"]] == [1]


def test_a_killed_training_ends_with_the_bytes_of_one_that_was_not(finished):
    folder, _ = finished
    step = find_online(folder)
    killed = json.loads((step / "manifest.json").read_text())["files"]
    shutil.rmtree(step)
    run(folder)
    assert json.loads((find_online(folder) / "manifest.json").read_text())["files"] == killed
