"""bench/scale.py at toy size: it measures what it says, and a lost shard fails it."""

import json
import subprocess
import sys

import pytest

from bench import scale
from tests.support.house import HOUSE


def measure(*words: str) -> dict[str, dict]:
    command = [sys.executable, "bench/scale.py", *words]
    output = subprocess.check_output(command, cwd=HOUSE, text=True)
    return json.loads(output.splitlines()[-1])["ratios"]


@pytest.mark.long
def test_shards_are_shared_and_none_is_lost():
    assert [*measure("shards", "shards=100", "processes=4")] == ["seconds_per_shard"]


def test_a_shard_that_is_processed_twice_fails_the_bench(tmp_path, monkeypatch):
    process = scale.process_shards

    def process_twice(worker, out, log="taken-stage"):
        process(worker, out, log)
        with (out / log).open("a") as file:
            file.write("00000.txt\n")

    monkeypatch.setattr(scale, "process_shards", process_twice)
    with pytest.raises(AssertionError):
        scale.share_shards(tmp_path / "twice", 5, 0)


@pytest.mark.slow
def test_workers_and_rows_are_measured():
    ratios = measure("workers", "rows", "seconds=2", "cost=0.02", "many=600", "less=300")
    assert {*ratios} == {
        *(f"efficiency_{count}" for count in (2, 4, 8)),
        *("driver_memory", "stage_memory", "seconds_per_row"),
    }
    assert ratios["efficiency_2"]["value"] > 0.2 and ratios["driver_memory"]["value"] < 1.5


@pytest.mark.slow
def test_workers_may_be_started_by_another_command(tmp_path):
    """And words are added to the run, in which `{workers}` is their number."""
    knobs = {"seconds": "1", "start": "env STARTED=elsewhere {work}", "words": "seed={workers}"}
    speed = scale.measure_speed(scale.KNOBS | knobs, tmp_path / "run", 2)
    config = next((tmp_path / "run" / "runs").glob("*/*/config.yaml")).read_text()
    assert speed > 0 and "seed=2" in config.splitlines()[0]
