"""What a pilot measured: one row for each Step, from its manifest, and its number of prompts."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.config import Config
from pipeline.driver.outline import prepare_plan, select_targets
from pipeline.plan import plan
from pipeline.preflight.row_counts import count_published_prompts
from pipeline.status import RunPlan
from pipeline.step import Step

ROUND, EVAL, ONCE = "round", "evaluation", "once"


@dataclass(frozen=True)
class MeasuredStep:
    """What one Step of a pilot took for so many prompts."""

    stage: str
    kind: str
    prompts: int
    seconds: float
    size: int
    cost: Mapping[str, float]
    path: Path


def measure_steps(cfg: Config) -> Iterator[MeasuredStep]:
    run_plan = prepare_plan(cfg, select_targets(plan(cfg), cfg.until))
    sizes = count_sizes(cfg, run_plan)
    for step in run_plan.steps:
        path = run_plan.folder(step)
        if manifest := store.read_manifest(path):
            size = sum(entry["size"] for entry in manifest["files"])
            prompts = count_prompts(step, sizes)
            yield MeasuredStep(
                step.stage,
                find_kind(step),
                prompts,
                manifest["seconds"],
                size,
                manifest["cost"],
                path,
            )


def find_kind(step: Step) -> str:
    if step.stage == "benchmark":  # a pilot does not lower its number of questions
        return ONCE
    if step.in_evaluation:
        return EVAL
    return ROUND if step.label else ONCE


def count_prompts(step: Step, sizes: Mapping[str, int]) -> int:
    """The prompts that a step's time grows with. Training on all rounds' pairs reads more."""
    rounds = len(step.inputs.get("pairs", [step])) if step.stage == "train" else 1
    return sizes[find_kind(step)] * rounds


def count_sizes(cfg: Config, run_plan: RunPlan) -> dict[str, int]:
    """Prompts of a round and of an evaluation; all that `prompts` published if not limited."""
    parts = count_published_prompts(run_plan)
    assert parts, "a pilot has built the prompts"
    trained = cfg.sample.per_round or parts["train"]
    evaluated = cfg.evaluate.sample.per_round or parts[cfg.evaluate.split]
    return {ROUND: trained, EVAL: evaluated, ONCE: 1}


def measure_overhead(large: Config, wall: float) -> float:
    """Seconds between steps: starting a process, publishing, reading the store."""
    run_dirs = sorted((large.runs / large.recipe).iterdir())[-2:]
    ledgers = [json.loads((run_dir / "ledger.json").read_text()) for run_dir in run_dirs]
    built = [line for ledger in ledgers for line in ledger if line["counted"]]
    return max(0.0, wall - sum(line["seconds"] for line in built)) / len(built) if built else 0.0
