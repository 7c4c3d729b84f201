"""A whole run that ends with merged models: their rows, the gate's choice, and a share of 0."""

import json
import subprocess

import pytest
from safetensors.torch import load_file

from pipeline import store
from tests.e2e.test_smoke import SMALL, command, environment

pytestmark = [pytest.mark.slow, pytest.mark.model, pytest.mark.timeout(1500)]
WORDS = [*SMALL, "backend=transformers", "evaluate.control=false", "merge=with_sft"]
GATED = ["merge.alpha=[0,0.5,1]", "gate=best"]
ROWS = ["base", "sft", "round-1", "merge-0", "merge-50", "merge-100"]


def run(folder, *words: str) -> tuple[dict, str]:
    finished = subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((folder / "runs" / "latest" / "report.json").read_text())
    return report, finished.stdout


def read_weights(folder) -> dict:
    return load_file(folder / "weights" / "model.safetensors")


def test_merged_models_are_rows_and_the_gate_chooses_among_them(tmp_path):
    report, _ = run(tmp_path, *WORDS, *GATED)
    assert [model["name"] for model in report["models"]] == ROWS
    [gate] = report["gates"]
    assert [row["model"] for row in gate["candidates"]] == ROWS[1:]
    assert gate["chosen"] == report["evaluation"]["chosen"]
    means = {model["name"]: model["metrics"]["rules"]["mean"] for model in report["models"]}
    assert means["merge-0"] == means["sft"] and means["merge-100"] == means["round-1"]
    page = (tmp_path / "runs" / "latest" / "report.md").read_text()
    assert f"Chosen: after merging {gate['chosen']}" in page and "merge-50" in page
    folders = {model["name"]: model["fingerprint"] for model in report["models"]}
    parents = [
        read_weights(tmp_path / "store" / stage / folders[name])
        for stage, name in (("sft", "sft"), ("train", "round-1"))
    ]
    for name, parent in zip(("merge-0", "merge-100"), parents, strict=True):
        made = read_weights(tmp_path / "store" / "merge" / folders[name])
        assert made.keys() == parent.keys()
        assert all(tensor.equal(parent[key]) for key, tensor in made.items())
    # The next share is merged, sampled and scored; everything before it is there already.
    report, printed = run(tmp_path, *WORDS, "merge.alpha=0.25")
    assert report["evaluation"]["chosen"] == "merge-25"
    built = [line.split()[1] for line in printed.splitlines() if line.startswith("■")]
    assert sorted(built) == ["evaluate", "merge", "reference", "sample", "score"]
    [merged] = [model for model in report["models"] if model["name"] == "merge-25"]
    manifest = store.read_manifest(tmp_path / "store" / "merge" / merged["fingerprint"])
    assert manifest and manifest["config"]["alpha"] == 0.25


def test_merged_adapters_are_sampled_and_evaluated(tmp_path):
    """An adapter between itself and its base, and two rounds of one adapter as one of rank 2r."""
    words = [*WORDS, "adapter=lora", "train.learning_rate=1e-3"]
    report, _ = run(tmp_path, *words, "merge.alpha=0.5")
    assert report["evaluation"]["chosen"] == "merge-50"
    [made] = (tmp_path / "store" / "merge").glob("*/model.json")
    assert json.loads(made.read_text())["peft"]["r"] == 16
    soup = ["rounds=2", "merge=rounds", "sample.per_round=40", "evaluate.control=false"]
    report, _ = run(tmp_path, *words, *soup)
    assert report["evaluation"]["chosen"] == "merge"
    records = map(
        json.loads, (file.read_text() for file in tmp_path.glob("store/merge/*/model.json"))
    )
    ranks = {record["peft"]["r"] for record in records}
    assert ranks == {16, 32}
    kl = {model["name"]: model["kl"]["mean"] for model in report["models"]}
    assert kl["merge"] > 0
