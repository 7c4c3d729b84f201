"""What a training reports when it ends: `training.json`, and its symptoms on the screen."""

import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import Model, write_json
from pipeline.config import TrainConfig
from pipeline.training.monitoring.diagnostics import FEW_STEPS, UNCHANGED, find_symptoms


def write(
    cfg: TrainConfig,
    out: Path,
    state: Any,
    kept: int,
    stopped: str | None,
    few_steps: str | None,
    unchanged: bool,
) -> None:
    """Write `training.json` and print the symptoms.

    `steps` of those `planned` were taken. The published weights are of step `kept`; `unchanged`
    says that they equal those at the start. The file names knobs as `train` has them: where the
    block is mounted is outside identity.
    """
    symptoms = [
        *([UNCHANGED] if unchanged else []),
        *([FEW_STEPS] if few_steps else []),
        *find_symptoms(Model(out).read_metrics()),
    ]
    summary = {
        "steps": state.global_step,
        "planned": state.max_steps,
        "kept": kept,
        "stopped": stopped,
        "unchanged": unchanged,
        "symptoms": [
            {
                "symptom": one.name,
                "cause": one.cause,
                "knob": cfg.mounted_at("train").name_knobs(one.remedy),
            }
            for one in symptoms
        ],
    }
    write_json(out / "training.json", summary)
    for one in symptoms:
        if one is FEW_STEPS:  # already printed before the first step
            continue
        line = f"! train: {one.name}: {one.cause}. Try this: {cfg.name_knobs(one.remedy)}."
        print(line, file=sys.stderr, flush=True)
