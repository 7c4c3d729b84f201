"""Run the experiments of docs/understand and write what they measured into its figures/*.json.

python docs/experiments.py [NAME …]

They share one store: SFT, samples and scores are made once, and what is built is not run again.
`docs/plots.py` draws the figures from these files.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Pairs, write_text
from pipeline.results import Run

FIGURES = Path(__file__).parent / "understand" / "figures"
BASE = "strop run recipes=understand"
SWEEP = "strop sweep recipes=understand"
ALL_OFFLINE = "offline=file pair.mix.on_policy=0 pair.mix.offline=1"
DIGITS = 4  # significant ones, of every measured number
SAMPLE_COUNTS = (2, 3, 4, 5, 6, 7, 8)  # of the base run's eight samples per prompt
# What is measured at each evaluation during training: our name, and that of metrics.jsonl.
EVALUATED = {
    "loss": "eval_loss",
    "accuracy": "eval_rewards/accuracies",
    "kl": "eval_kl",
    "score": "eval_score",
    "tokens": "eval_tokens",
    "drop": "eval_chosen_logp_drop",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """Commands as typed, and the names of all their points in order."""

    commands: tuple[str, ...]
    points: tuple[str, ...]


EXPERIMENTS = {
    "beta": Experiment(
        (f"{SWEEP} train.beta=0.01,0.1,0.5,2",), ("β 0.01", "β 0.1", "β 0.5", "β 2")
    ),
    "rate": Experiment(
        (f"{SWEEP} train.learning_rate=3e-6,3e-4,1e-3,3e-3",),
        ("rate 3e-6", "rate 3e-4", "rate 1e-3", "rate 3e-3"),
    ),
    "length": Experiment(
        (BASE, f"{SWEEP} pair.scorer=biased pair=best_worst,length_matched"),
        ("rule", "biased", "biased, length_matched"),
    ),
    "displacement": Experiment(
        (
            f"{BASE} train.learning_rate=1e-3",
            f"{BASE} train.learning_rate=1e-3 train=rpo train.loss_group=16",
        ),
        ("dpo", "rpo"),
    ),
    "noise": Experiment(
        (
            BASE,
            f"{SWEEP} pair.scorer=wrong_20,wrong_40",
            f"{BASE} pair.scorer=wrong_40 train=cdpo train.args.label_smoothing=0.4",
        ),
        ("all right", "20 % wrong", "40 % wrong", "40 % wrong, cdpo"),
    ),
    "policy": Experiment(
        (
            BASE,
            "python recipes/understand.py runs",
            f"{SWEEP} {ALL_OFFLINE} offline.source.path=runs/close.jsonl,runs/foreign.jsonl",
        ),
        ("on-policy", "offline, close", "offline, foreign"),
    ),
    "ties": Experiment((BASE,), ("base",)),
    "overoptimise": Experiment(("strop run recipes=overoptimise backend=transformers",), ()),
}


# ── running ──────────────────────────────────────────────────────────────────────────────────────


def run_command(command: str) -> list[Run]:
    """Type a command. Returns its runs: one, or one for each point of a sweep."""
    (program, *words) = shlex.split(command)
    program_words = ["-m", "pipeline"] if program == "strop" else []
    typed = [sys.executable, *program_words, *words]
    done = subprocess.run(typed, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{command}\n  ended with {done.returncode}: see above.")
    if program != "strop":
        return []
    folder = Path(done.stdout.splitlines()[-1]).parent
    points = folder / "points.json"
    if not points.exists():
        return [Run(folder)]
    return [Run(folder / str(point["point"])) for point in json.loads(points.read_text())]


def run_experiment(name: str) -> None:
    (experiment, begun) = (EXPERIMENTS[name], time.monotonic())
    runs = [run for command in experiment.commands for run in run_command(command)]
    figures: Row = {"commands": experiment.commands, **measure(name, runs)}
    figures = round_numbers(figures)
    write_text(FIGURES / f"{name}.json", json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(f"{name:14} {(time.monotonic() - begun) / 60:5.1f} minutes", flush=True)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────


def measure(name: str, runs: list[Run]) -> Row:
    if name == "ties":
        return {"ties": measure_ties(runs[0])}
    sft = describe_model(runs[0].report, "sft")
    if name == "overoptimise":
        (report, names) = (runs[0].report, [f"round-{number}" for number in (1, 2, 3)])
        rounds = [{"name": one, "final": describe_model(report, one)} for one in names]
        return {"sft": sft, "points": rounds}
    named = zip(EXPERIMENTS[name].points, runs, strict=True)
    return {"sft": sft, "points": [describe_run(point, run) for point, run in named]}


def describe_run(name: str, run: Run) -> Row:
    pairs: Pairs = run.artifact("pair")
    funnel = pairs.read_funnel()
    rows = run.model.read_metrics()
    beta = json.loads((run.model.path / "step.json").read_text())["config"]["beta"]
    return {
        "name": name,
        "final": describe_model(run.report, "round-1"),
        "pairs": {key: funnel[key] for key in ("train", "dev", "chosen_longer")},
        "evaluations": [*list_evaluations(rows, beta)],
        "losses": [[row["step"], row["loss"]] for row in rows if "loss" in row],
    }


def describe_model(report: Row, name: str) -> Row:
    """A model's answers to the held-out prompts, by the scorer that decides the verdict."""
    scorer = report["evaluation"]["scorer"]
    model = next(one for one in report["models"] if one["name"] == name)
    metrics = model["metrics"]
    described = {
        "score": metrics[scorer],
        "kl": model["kl"]["mean"],
        "tokens": model["tokens"]["mean"],
        "truncated": model["truncated"],
        "opening": model["opening"],
        "distinct": model["distinct"]["2"],
        "criteria": {
            key.partition("/")[2]: value["mean"]
            for key, value in metrics.items()
            if key.startswith(f"{scorer}/")
        },
        "reward": metrics.get("reward"),
    }
    gains = [one for one in report["differences"] if one["model"] == name]
    gain = next((one for one in gains if one["scorer"] == scorer), None)
    bounds = {key: gain[key] for key in ("mean", "low", "high")} if gain else None
    return {**described, "gain": bounds}


def list_evaluations(rows: list[Row], beta: float) -> Iterator[Row]:
    """The log-ratios u and d and their difference are TRL's rewards, over β."""
    merged: dict[int, Row] = {}
    for row in rows:
        if any(name.startswith("eval_") for name in row):
            merged.setdefault(row["step"], {}).update(row)
    for step, row in sorted(merged.items()):
        figures = {name: row[key] for name, key in EVALUATED.items()}
        ratios = {
            "chosen": row["eval_rewards/chosen"] / beta,
            "rejected": row["eval_rewards/rejected"] / beta,
            "delta": row["eval_rewards/margins"] / beta,
        }
        yield {"step": step, **figures, **ratios}


def measure_ties(run: Run) -> list[Row]:
    """The share of prompts whose first n samples all score alike."""
    scores = run.scores.filter(pl.col("scorer") == "rules").select("sample_id", "score")
    rows = run.samples.join(scores, on="sample_id", how="left", maintain_order="left")
    by_prompt = rows.group_by("prompt_id", maintain_order=True).agg("score")["score"].to_list()
    counted = []
    for n in SAMPLE_COUNTS:
        tied = sum(len({*scores[:n]}) == 1 for scores in by_prompt)
        counted.append({"n": n, "share": tied / len(by_prompt)})
    return counted


def round_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: round_numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [round_numbers(each) for each in value]
    return value


if __name__ == "__main__":
    FIGURES.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or EXPERIMENTS:
        run_experiment(chosen)
