"""The whole pipeline, small: real vLLM and TRL through the command line; then its promises.

`make test` runs one round on a small model (four engine starts); `make test-slow` runs the smoke
recipe.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import polars as pl
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.artifacts import Samples
from tests.support.house import HOUSE

SMALL = [
    "recipes=smoke",
    "rounds=1",
    "base.layers=1",
    "sft.data.rows=400",
    "sft.epochs=1",
    "prompts.rows=200",
    "prompts.split={dev: 20, test: 40}",
    "sample.per_round=60",
    "sample.shard=20",
    "train.batch=2",
    "train.runtime.micro_batch=2",
    "train.runtime.save_every=1",
    "pair.dev={share: 0.1, min: 4, max_share: 0.2}",
    "evaluate.resamples=500",
]
COLUMNS = {
    "sample": {
        *(
            "prompt_id",
            "sample_id",
            "round",
            "prompt",
            "completion",
            "prompt_token_ids",
            "token_ids",
            "logprob",
        ),
        *("finish_reason", "setting", "temperature", "policy"),
        *("asked_token_ids", "stop_string", "reasoning_tokens"),
    },
    "score": {"sample_id", "prompt_id", "scorer", "score", "status", "detail"},
    "pair": {
        *(
            "prompt",
            "chosen",
            "rejected",
            "prompt_id",
            "chosen_id",
            "rejected_id",
            "chosen_score",
            "rejected_score",
        ),
        *("margin", "prompt_token_ids", "chosen_token_ids", "rejected_token_ids", "origin"),
        *("p_chosen", "weight"),
    },
    "reference": {"sample_id", "prompt_id", "logp", "tokens"},
}
FILES = {
    "sample": "samples/*.parquet",
    "score": "scores/*.parquet",
    "pair": "train.parquet",
    "reference": "logps.parquet",
}


pytestmark = pytest.mark.timeout(1500)  # the fixture is a whole run


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HOUSE), "TQDM_DISABLE": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run. Training is killed once in the middle with kill -9, and the run repeated."""
    folder = tmp_path_factory.mktemp("smoke")
    driver = subprocess.Popen(
        command(*SMALL), cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not list(
        folder.glob("store/train/*.partial/scratch/checkpoints/checkpoints.json")
    ):
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    first, _ = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, first
    second = subprocess.run(
        command(*SMALL), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert second.returncode == 0, second.stdout + second.stderr
    return folder, first, second.stdout


def steps(folder: Path, stage: str) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"store/{stage}/*/manifest.json"))


@pytest.mark.model
def test_the_second_run_redoes_nothing_that_was_published(finished):
    _, first, second = finished
    built = [line[2:26].strip() for line in first.splitlines() if line.startswith("■")]
    found = [line[2:26].strip() for line in second.splitlines() if line.startswith("✓")]
    again = [line[2:26].strip() for line in second.splitlines() if line.startswith("■")]
    assert sorted(built) == sorted(found) and len(built) == 13
    assert again[0].split() == ["train", "round", "1"]


@pytest.mark.model
def test_the_last_line_is_the_report_and_it_keeps_the_contract(finished):
    folder, _, output = finished
    page = folder / output.splitlines()[-1]
    assert page.name == "report.html" and page.exists()
    report = json.loads(page.with_name("report.json").read_text())
    assert [m["name"] for m in report["models"]] == ["base", "sft", "round-1"]
    assert {"models", "duels", "benchmarks", "funnel", "training", "cost", "verdict"} <= set(report)
    assert report["verdict"]["better"] in ("yes", "no", "unclear")
    sft = report["models"][1]
    assert sft["metrics"]["rules"]["n"] == 40 and sft["metrics"]["rules"]["failed"] == 0
    assert abs(sft["kl"]["mean"]) < 1e-4, (
        "vLLM's log-probabilities and transformers' are of the same model"
    )
    assert {"sample", "train", "reference"} <= {row["stage"] for row in report["cost"]}


@pytest.mark.model
@pytest.mark.parametrize("stage", COLUMNS)
def test_tables_open_with_datasets_and_have_the_contract_s_columns(finished, stage):
    folder, _, _ = finished
    for step in steps(folder, stage):
        files = [str(path) for path in step.glob(FILES[stage])]
        table = datasets.load_dataset(
            "parquet", data_files=files, cache_dir=str(folder / "cache"), split="train"
        )
        assert set(table.column_names) == COLUMNS[stage]


@pytest.mark.model
def test_models_open_with_from_pretrained_and_hold_no_pickles(finished):
    folder, _, _ = finished
    for step in [*steps(folder, "base"), *steps(folder, "sft"), *steps(folder, "train")]:
        model = AutoModelForCausalLM.from_pretrained(step / "weights")
        assert (
            len(AutoTokenizer.from_pretrained(step / "weights"))
            <= model.get_input_embeddings().num_embeddings
        )
        assert {p.suffix for p in step.rglob("*") if p.is_file()} <= {
            ".json",
            ".jsonl",
            ".safetensors",
            ".jinja",
            ".parquet",
            ".md",
            ".png",
        }


@pytest.mark.model
def test_what_was_sampled_is_what_is_paired(finished):
    """Promise 4, from the sampler to the pairs; to the batch: tests/stages/test_train.py."""
    folder, _, _ = finished
    samples = {}
    for step in steps(folder, "sample"):
        files = [str(path) for path in step.glob("samples/*.parquet")]
        for row in datasets.load_dataset(
            "parquet", data_files=files, cache_dir=str(folder / "cache"), split="train"
        ):
            samples[row["sample_id"]] = row
    [pair] = steps(folder, "pair")
    tokenizer = AutoTokenizer.from_pretrained(steps(folder, "sft")[0] / "weights")
    table = datasets.load_dataset(
        "parquet",
        data_files=str(pair / "train.parquet"),
        cache_dir=str(folder / "c"),
        split="train",
    )
    for row in table:
        for side in ("chosen", "rejected"):
            drawn = samples[row[f"{side}_id"]]
            assert drawn["prompt_id"] == row["prompt_id"]
            assert row[f"{side}_token_ids"] == drawn["token_ids"]
            assert row["prompt_token_ids"] == drawn["prompt_token_ids"]
            assert row[f"{side}_token_ids"][-1] == tokenizer.eos_token_id
            assert row[side][0]["content"] == drawn["completion"]
        assert row["prompt_token_ids"].count(tokenizer.bos_token_id) == 1


@pytest.mark.model
def test_no_file_of_an_artifact_names_this_place(finished):
    folder, _, _ = finished
    for manifest in folder.glob("store/*/*/manifest.json"):
        for entry in json.loads(manifest.read_text())["files"]:
            if Path(entry["path"]).suffix in (".json", ".jsonl", ".md", ".html"):
                assert str(folder) not in (manifest.parent / entry["path"]).read_text(), entry[
                    "path"
                ]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_smoke_recipe_shows_that_training_helped(tmp_path):
    done = subprocess.run(
        command("recipes=smoke"), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(
        (tmp_path / done.stdout.splitlines()[-1]).with_name("report.json").read_text()
    )
    assert [m["name"] for m in report["models"]] == ["base", "sft", "round-1", "round-2"]
    gain = next(
        d for d in report["differences"] if (d["model"], d["scorer"]) == ("round-2", "rules")
    )
    assert gain["mean"] >= 0.08 and gain["low"] > 0 and gain["n"] >= 300
    duel = next(d for d in report["duels"] if (d["a"], d["b"]) == ("round-2", "sft"))
    assert duel["wins"] > duel["losses"]
    by_vllm, by_transformers = (
        greedy_answers(tmp_path, backend) for backend in ("vllm", "transformers")
    )
    assert len(by_vllm) == 100 and by_vllm == by_transformers


def greedy_answers(folder: Path, backend: str) -> dict[str, list[int]]:
    """The tokens of the SFT model to 100 test prompts."""
    calm = [
        "evaluate.sample.settings.answer.temperature=0",
        "evaluate.sample.settings.answer.top_p=1",
    ]
    words = [
        "recipes=smoke",
        "until=sample@test sft",
        f"backend@evaluate.sample.backend={backend}",
        *calm,
    ]
    asked = command(*words, "evaluate.sample.per_round=100")
    done = subprocess.run(asked, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Samples(folder / done.stdout.splitlines()[-1]).read("answer")
    return dict(rows.select("prompt_id", "token_ids").iter_rows())


@pytest.mark.slow
@pytest.mark.model
def test_a_training_that_sigterm_stops_goes_on_to_the_same_files(finished, tmp_path):
    shutil.copytree(finished[0] / "store", tmp_path / "store")
    [other] = steps(tmp_path, "train")
    words = command(*SMALL, "train.beta=0.2", "until=train@1")
    driver = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while driver.poll() is None and not list(
        tmp_path.glob("store/train/*.partial/scratch/checkpoints/checkpoints.json")
    ):
        time.sleep(0.01)
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 75 and "Interrupted (SIGTERM)" in said
    assert steps(tmp_path, "train") == [other]

    made = []
    for first_step_again in (False, True):
        subprocess.run(words, cwd=tmp_path, env=environment(), check=True)
        [log] = (tmp_path / "runs" / "latest").glob("logs/*-train-*.log")
        assert ("▸ train 1/" in log.read_text()) == first_step_again
        [step] = set(steps(tmp_path, "train")) - {other}
        made.append(json.loads((step / "manifest.json").read_text())["files"])
        shutil.rmtree(step)
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_full_lora_and_qlora_each_raise_the_dev_score(tmp_path):
    """Three trainings of one SFT model on the same pairs; the third has a quantised base."""
    rates = {"full": "3e-4", "lora": "1e-3", "qlora": "1e-3"}
    shared = [
        "prompts",
        "base",
        "sft",
        *(f"{stage} round 1" for stage in ("sample", "score", "pair")),
    ]
    shared += [f"{stage} dev sft" for stage in ("sample", "score", "reference")]
    for adapter, rate in rates.items():
        rated = [f"train.learning_rate={rate}", f"train.runtime.typical_learning_rate={rate}"]
        words = [f"adapter={adapter}", *rated, "evaluate.split=dev", "rounds=1"]
        done = subprocess.run(
            command("recipes=smoke", *words),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = {
            " ".join(line[2:26].split())
            for line in done.stdout.splitlines()
            if line.startswith("✓")
        }
        assert found >= set(shared if adapter != "full" else []), done.stdout
        report = json.loads(
            (tmp_path / done.stdout.splitlines()[-1]).with_name("report.json").read_text()
        )
        gain = next(
            d for d in report["differences"] if (d["model"], d["scorer"]) == ("round-1", "rules")
        )
        assert report["evaluation"]["split"] == "dev" and gain["low"] > 0, (adapter, gain)
        print(
            adapter,
            {model["name"]: model["metrics"]["rules"]["mean"] for model in report["models"]},
            gain,
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_sweep_builds_what_its_points_share_once(tmp_path):
    done = subprocess.run(
        command("recipes=sweep_smoke"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = [line[2:26].split() for line in done.stdout.splitlines() if line.startswith("■")]
    names = [" ".join(words) for words in built]
    assert names.count("train round 1") == 4
    shared = [
        "prompts",
        "base",
        "sft",
        *(f"{stage} round 1" for stage in ("sample", "score", "pair", "reference")),
    ]
    evals = [
        f"{stage} dev {model}"
        for stage in ("sample", "score", "reference")
        for model in ("base", "sft")
    ]
    assert {name: names.count(name) for name in [*shared, *evals]} == dict.fromkeys(
        [*shared, *evals], 1
    )
    page = tmp_path / done.stdout.splitlines()[-1]
    assert page.name == "sweep.html" and (page.parent / "best" / "report.html").exists()
    points = json.loads((page.parent / "points.json").read_text())
    assert [p["status"] for p in points] == ["done"] * 4
    assert len({(p["score"], p["kl"]) for p in points}) == 4
    assert {f"{stage} test round-1" for stage in ("sample", "score", "reference")} <= set(names), (
        "the best one, on test"
    )


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(2400)
def test_a_sweep_over_the_number_of_pairs_and_the_rate_trains_alone(tmp_path):
    """3 × 2: one sampling, one scoring, three selections of its pairs, six trainings."""
    grid = ["pair.budget.at_most=8,16,24", "train.learning_rate=6e-5,3e-4"]
    words = ["sweep", *SMALL, "backend=transformers", *grid, "until=train@1"]
    done = subprocess.run(
        command(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    points = json.loads((tmp_path / done.stdout.splitlines()[-1]).read_text())
    assert [point["status"] for point in points] == ["done"] * 6
    built = [line[2:26].split() for line in done.stdout.splitlines() if line.startswith("■")]
    once = dict.fromkeys(["prompts", "base", "sft", "sample", "score"], 1)
    counts = Counter(words[0] for words in built)
    assert counts == {**once, "pair": 3, "reference": 3, "train": 6}, done.stdout
    assert counts == {stage: len(steps(tmp_path, stage)) for stage in counts}

    sizes = {}
    for step in steps(tmp_path, "pair"):
        rows = pl.read_parquet(step / "train.parquet", columns=["chosen_id", "rejected_id"]).rows()
        sizes[len(rows)] = {*rows}
    assert [*sorted(sizes)] == [8, 16, 24] and sizes[8] < sizes[16] < sizes[24]
    trained = {
        (step / "weights" / "model.safetensors").read_bytes() for step in steps(tmp_path, "train")
    }
    assert len(trained) == 6
