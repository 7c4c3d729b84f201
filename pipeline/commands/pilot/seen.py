"""What a pilot measured: one row for each Step, as its manifest has it, and how many prompts it was for."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.config import Config
from pipeline.driver.executor import prepare, select
from pipeline.plan import plan
from pipeline.preflight.capacity import prompts_published
from pipeline.status import Planned
from pipeline.step import Step

ROUND, EXAM, ONCE = "round", "exam", "once"


@dataclass(frozen=True)
class Seen:
    """One Step of a pilot: what it took for so many prompts."""

    stage: str
    kind: str
    prompts: int
    seconds: float
    size: int
    cost: Mapping[str, float]
    path: Path


def measured(cfg: Config) -> Iterator[Seen]:
    planned = prepare(cfg, select(plan(cfg), cfg.until))
    sizes = sizes_of(cfg, planned)
    for step in planned.steps:
        path = planned.folder(step)
        if manifest := store.read_manifest(path):
            size = sum(entry["size"] for entry in manifest["files"])
            prompts = prompts_of(step, sizes)
            yield Seen(
                step.stage,
                kind_of(step),
                prompts,
                manifest["seconds"],
                size,
                manifest["cost"],
                path,
            )


def kind_of(step: Step) -> str:
    if step.stage == "benchmark":  # its questions are not ours to be fewer
        return ONCE
    if isinstance(step.label, str):
        return EXAM
    return ROUND if step.label else ONCE


def prompts_of(step: Step, sizes: Mapping[str, int]) -> int:
    """What a step's time grows with. Training on the pairs of all rounds reads so many more."""
    return sizes[kind_of(step)] * (len(step.inputs["pairs"]) if step.stage == "train" else 1)


def sizes_of(cfg: Config, planned: Planned) -> dict[str, int]:
    """How many prompts a round and an exam have; where the config leaves it open, all that `prompts` published."""
    parts = prompts_published(planned)
    assert parts, "a pilot has built them"
    drawn, asked = (
        cfg.sample.per_round or parts["train"],
        cfg.exam.sample.per_round or parts[cfg.exam.split],
    )
    return {ROUND: drawn, EXAM: asked, ONCE: 1}


def between(large: Config, wall: float) -> float:
    """Seconds that a step costs beside its own: starting its process, publishing, looking at the store."""
    stories = sorted((large.runs / large.recipe).iterdir())[-2:]
    built = [
        line
        for story in stories
        for line in json.loads((story / "ledger.json").read_text())
        if line["counted"]
    ]
    return max(0.0, wall - sum(line["seconds"] for line in built)) / len(built) if built else 0.0
