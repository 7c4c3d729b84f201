"""A pool on the playground: a stronger model's answers over the policy's own, without a score."""

import json
import subprocess
from pathlib import Path

import polars as pl
import pytest

from tests.e2e.test_smoke import command, environment, steps

SHORT = ["recipes=smoke", "backend=transformers", "sft.data.rows=2400", "sft.epochs=2"]
# The strong model has seen demonstrations that miss nothing, and more often.
STRONG = [*SHORT, "sft.data.obeyed=1.0", "sft.epochs=4"]
WEAK = [*SHORT, "rounds=1", "sample.settings.draw.n=1"]
DELTA = ["pair=by_source", "pair.strategy.chosen=strong", "pair.strategy.rejected=policy"]
GOLD = "evaluate.score.scorers.rules.gold=true"  # no pair is made by it


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path, *words: str) -> Path:
    """The folder of the one Step that the command builds up to."""
    return folder / run(folder, *words).splitlines()[-1]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(3000)
def test_the_answers_of_a_stronger_model_over_its_own_raise_the_gold_score_of_the_weak_one(
    tmp_path,
):
    strong = build(tmp_path, *STRONG, "until=sft") / "weights"
    weak = [*WEAK, "+member@sample.pool.strong=checkpoint", f"sample.pool.strong.model={strong}"]
    weak += [*DELTA, GOLD]
    pairs = build(tmp_path, *weak, "until=pair")
    funnel = json.loads((pairs / "funnel.json").read_text())
    assert not steps(tmp_path, "score"), "no score was needed"
    assert {side: funnel["sources"]["strong"][side] for side in ("chosen", "rejected")} == {
        "chosen": funnel["pairs"],
        "rejected": 0,
    }

    tuned = build(tmp_path, *imitate(tmp_path, pairs), "until=sft") / "weights"
    row = ["+baseline@evaluate.baselines.imitated=checkpoint"]
    row += [f"evaluate.baselines.imitated.model={tuned}"]
    page = build(tmp_path, *weak, *row)
    report = json.loads(page.with_name("report.json").read_text())
    gains = {one["model"]: one for one in report["differences"] if one["scorer"] == "rules"}
    means = {one["name"]: one["metrics"]["rules"]["mean"] for one in report["models"]}
    print(means, gains["round-1"], gains.get("imitated"))
    assert gains["round-1"]["low"] > 0
    assert {"base", "sft", "round-1", "imitated"} == set(means)
    [sources] = [one["sources"] for one in report["funnel"]["pairs"]]
    assert sources["strong"]["nats_per_token"] < sources["policy"]["nats_per_token"] < 0


def imitate(folder: Path, pairs: Path) -> list[str]:
    """The command that tunes the weak model on the chosen answers of these pairs."""
    rows = pl.read_parquet(pairs / "train.parquet").select("prompt", "chosen").to_dicts()
    lines = [json.dumps({"messages": [*row["prompt"], *row["chosen"]]}) for row in rows]
    (folder / "chosen.jsonl").write_text("".join(f"{line}\n" for line in lines))
    [weak] = [
        step
        for step in steps(folder, "sft")
        if json.loads((step / "manifest.json").read_text())["config"]["data"]["obeyed"] == 0.6
    ]
    return [
        "recipes=smoke",
        "base=checkpoint",
        f"base.model={weak / 'weights'}",
        "demonstrations@sft.data=jsonl",
        "sft.data.path=chosen.jsonl",
        "sft.learning_rate=3e-4",
        "sft.epochs=1",
    ]
