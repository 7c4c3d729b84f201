"""What a training says about itself when it is over: `training.json`, and its symptoms in words."""

import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import Model, write_json
from pipeline.training.monitoring.diagnostics import FEW_STEPS, UNCHANGED, symptoms


def write(
    out: Path, state: Any, kept: int, stopped: str | None, few_steps: str | None, unchanged: bool
) -> None:
    """`steps` were taken of those `planned`; the published weights are of step `kept`, `unchanged` since the start."""
    found = [
        *([UNCHANGED] if unchanged else []),
        *([FEW_STEPS] if few_steps else []),
        *symptoms(Model(out).read_metrics()),
    ]
    told = [{"symptom": one.name, "cause": one.cause, "knob": one.knob} for one in found]
    figures = {
        "steps": state.global_step,
        "planned": state.max_steps,
        "kept": kept,
        "stopped": stopped,
    }
    figures["unchanged"] = unchanged
    write_json(out / "training.json", {**figures, "symptoms": told})
    for one in (
        each for each in found if each is not FEW_STEPS
    ):  # that was said before the first step
        print(
            f"! train: {one.name}: {one.cause}. Try this: {one.knob}.", file=sys.stderr, flush=True
        )
