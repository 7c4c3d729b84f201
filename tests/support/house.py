"""What tests of the engine room share: composing as the command line does, and running the real
thing on toy stages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import preflight
from pipeline.config import Config
from pipeline.config.compose import Arguments, compose
from pipeline.errors import run_all
from pipeline.hashing import ContentCache
from pipeline.plan import plan
from pipeline.preflight import capacity
from pipeline.preflight.training_fits import TrainingFits
from pipeline.status import RunPlan
from pipeline.step import Identity, Step

HOUSE = Path(__file__).parents[2]
# One round without base: 16 Steps, a third of a second each with toy stages.
SMALL = [
    "prompts=playground",
    "sft.model=hub/model",
    f"sft.revision={'0' * 40}",
    "sample.per_round=100",
]


def composed(*arguments: str) -> Config:
    points, _ = compose(Arguments.parse(list(arguments)))
    return points[0]


def fingerprints(*arguments: str) -> dict[str, str]:
    """`stage@label` (and the evaluation's model) → fingerprint, for every Step of the plan."""
    return {name: identity_of(step) for name, step in named(plan(composed(*arguments))).items()}


def named(last: Step) -> dict[str, Step]:
    return {f"{step.stage}@{step.label}": step for step in last.ancestors()}


def identity_of(step: Step) -> str:
    cache = ContentCache(Path(os.devnull) / "none")
    return Identity(lambda path: cache.hash_path(Path(path))).fingerprint(step)


def check_steps(coming: Iterable[Step]) -> None:
    """Raise what the preflight refuses of these Steps."""
    run_all(preflight.list_checks(coming))


def check_capacity(run_plan: RunPlan, coming: Iterable[Step] | None = None) -> None:
    """Raise what this machine has no room for; by default of the whole plan."""
    steps = run_plan.steps if coming is None else list(coming)
    run_all(capacity.list_checks(run_plan, TrainingFits(run_plan), steps))


def describe_memory(run_plan: RunPlan) -> list[str]:
    """What a plan prints of memory while nothing is built."""
    return [*capacity.describe_memory(run_plan, TrainingFits(run_plan), run_plan.steps)]


class Toys:
    """The real command line on toy stages, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "toys.log"

    def environment(self, **toy: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(HOUSE),
            "PIPELINE_STAGES": "tests.support.toys",
            "TOY_LOG": str(self.log),
            **{f"TOY_{name.upper()}": value for name, value in toy.items()},
        }

    def start(self, *arguments: str, **toy: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env=self.environment(**toy),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **toy: str) -> str:
        process = self.start(*arguments, **toy)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, output
        return output

    def built(self, output: str) -> list[str]:
        """`stage label` of every Step that the ledger shows as built."""
        return [
            " ".join(line[2:].split()[:-3]) for line in output.splitlines() if line.startswith("■")
        ]

    def notes(self, word: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(word)]

    def manifests(self) -> dict[str, Any]:
        found = (self.folder / "store").glob("*/*/manifest.json")
        return {f"{p.parent.parent.name}/{p.parent.name}": json.loads(p.read_text()) for p in found}

    def files(self) -> dict[str, Any]:
        """Every published Step's files with their hashes."""
        return {name: manifest["files"] for name, manifest in self.manifests().items()}
