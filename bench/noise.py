"""Flipped labels: cDPO and robust DPO against DPO, with 30 % of the playground's pairs flipped.

SFT, samples, scores, pairs and reference values come from the smoke recipe's own store (`store=…`,
built when missing) and are shared: a flipped pair keeps its ids, so its reference values stay. Each
training then answers prompts that nothing was trained on, over three seeds. `gain` is cDPO's mean
rule score minus DPO's on the same flipped pairs, seed by seed, and `robust` the same of robust DPO:
both are fixed here, not chosen by the outcome. `clean` is DPO on the right labels minus DPO on
flipped ones: if that is zero, there is nothing to win back.

Why this setting. In the recipe's one epoch no |βΔ| leaves the middle of the logistic function,
where the losses differ by a factor that Adam takes out; after six epochs flips still cost DPO less
than 0.01. After twelve it has fit every label, the wrong ones as well, and is past its best: that
is what cDPO is made for, whose margin ends at log((1−ε)/ε)/β. The other setting tried,
`train.beta=0.5 train.epochs=6`, fits every label near DPO's best: there the margin ends at 1.7
nats, cDPO hardly leaves SFT and loses, and robust DPO, whose weight for any misfit is bounded,
gains. Both were chosen by DPO alone, on a seed that is not measured; ε is the true share of wrong
labels.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import polars as pl
from measure import Ratio, report

from pipeline.artifacts import Logps, Model, Pairs, Prompts, write_table
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.hashing import ContentCache
from pipeline.plan import plan
from pipeline.stages import sample, score, train
from pipeline.step import Identity, Step

FLIPPED, SEEDS, ANSWERS = 0.3, (0, 1, 2), 8
OBJECTIVES = ("dpo", "cdpo", "robust")
SETTING = ["train.beta=0.1", "train.epochs=12"]  # of all three, so that the loss alone differs
# Evaluations change nothing, and take time.
NO_EVALUATION = ["train.guards.prompts=0", "train.eval_every=1000"]
OVERRIDES = [word for word in sys.argv[1:] if word.startswith("train.")]  # another setting
SMOKE = ["recipes=smoke", "rounds=1", "backend@evaluate.sample.backend=transformers"]
KNOBS = {"dpo": [], **{name: [f"train.args.label_smoothing={FLIPPED}"] for name in OBJECTIVES[1:]}}


def compose_config(objective: str, *words: str) -> Config:
    knobs = [f"train={objective}", *KNOBS[objective], *SETTING, *NO_EVALUATION, *OVERRIDES]
    points, _ = compose(Arguments.parse([*SMOKE, *knobs, *words]))
    return points[0]


class SharedArtifacts:
    """What all trainings read, in the store of the smoke recipe."""

    def __init__(self, store: Path):
        command = [sys.executable, "-m", "pipeline", *SMOKE, f"store={store}", "until=reference@1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        steps = {
            f"{step.stage}@{step.label}": step for step in plan(compose_config("dpo")).ancestors()
        }
        identity = Identity(
            lambda path: ContentCache(store / ".contents.json").hash_path(Path(path))
        )

        def find(step: Step) -> Path:
            return store / step.stage / identity.fingerprint(step)

        self.sft = Model(find(steps["sft@0"]))
        self.pairs = Pairs(find(steps["pair@1"]))
        self.logps = Logps(find(steps["reference@1"]))
        self.prompts = Prompts(find(steps["prompts@0"]) / "test")
        draw: Any = steps["sample@test round-1"].config
        answer = draw.settings["answer"].model_copy(update={"n": ANSWERS})
        self.sampling = draw.model_copy(update={"settings": {"answer": answer}})
        self.scorers: Any = steps["score@test round-1"].config


def flip_pairs(pairs: Pairs, share: float, seed: int, folder: Path) -> Pairs:
    """Swap chosen and rejected in a share of the training pairs; the dev pairs stay unchanged."""
    table = pairs.read_train()
    count = round(share * table.height)
    wrong = pl.Series([True] * count + [False] * (table.height - count)).shuffle(seed=seed)
    sides = [name.removeprefix("chosen_") for name in table.columns if name.startswith("chosen_")]
    swaps = [("chosen", "rejected"), *((f"chosen_{side}", f"rejected_{side}") for side in sides)]
    columns = [
        pl.when(wrong).then(pl.col(other)).otherwise(pl.col(one)).alias(one)
        for pair in swaps
        for one, other in (pair, pair[::-1])
    ]
    write_table(folder / "train.parquet", table.with_columns(columns))
    write_table(folder / "dev.parquet", pairs.read_dev())
    return Pairs(folder)


def measure_rule_score(shared: SharedArtifacts, model: Model, out: Path) -> float:
    """The mean over the test prompts of the gold rule, by which the playground's prompts ask."""
    answers = sample.run(shared.sampling, out / "answers", policy=model, prompts=shared.prompts)
    scores = score.run(shared.scorers, out / "scores", samples=answers, prompts=shared.prompts)
    rules = scores.read().filter(pl.col("scorer") == "rules")
    return rules.group_by("prompt_id").agg(pl.col("score").mean())["score"].mean()


def train_and_score(
    shared: SharedArtifacts, objective: str, seed: int, folder: Path, flipped: float = FLIPPED
) -> float:
    cfg = compose_config(objective, f"train.seed={seed}").train
    folder = folder / f"{seed}-{flipped}"
    pairs = flip_pairs(shared.pairs, flipped, seed, folder / "pairs")
    out = shared.sft.path.parent.parent / "train" / f"noise-{objective}-{seed}"
    try:
        logps = [shared.logps]
        model = train.run(
            cfg, out, init=shared.sft, reference=shared.sft, pairs=[pairs], logps=logps
        )
        return measure_rule_score(shared, model, folder / objective)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    shared = SharedArtifacts(Path(given.get("store", "store")).absolute())
    gains: dict[str, list[float]] = {"cdpo": [], "robust": [], "clean": []}
    with tempfile.TemporaryDirectory() as folder:
        sft_score = measure_rule_score(shared, shared.sft, Path(folder) / "sft")
        print(f"SFT {sft_score:.4f}", flush=True)
        for seed in SEEDS:
            scores = {
                name: train_and_score(shared, name, seed, Path(folder)) for name in OBJECTIVES
            }
            scores["clean"] = train_and_score(shared, "dpo", seed, Path(folder), flipped=0.0)
            line = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            print(f"seed {seed}: {line}", flush=True)
            for name, values in gains.items():
                values.append(scores[name] - scores["dpo"])
    for name, values in gains.items():
        print(
            f"{name} - dpo: mean {mean(values):+.4f}, from {min(values):+.4f} to {max(values):+.4f}"
        )
    ratios = {
        "gain": Ratio(gains["cdpo"], "> 0", mean),
        "robust": Ratio(gains["robust"], "> 0", mean),
    }
    report("noise", {**ratios, "clean": Ratio(gains["clean"], None, mean)})


if __name__ == "__main__":
    main()
