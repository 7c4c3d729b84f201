"""What the gate chose after each round and why, from the steps that the report descends from."""

import json
from pathlib import Path
from typing import Any

from pipeline.report.analysis.ancestors import read_ancestors


def read_gates(out: Path) -> list[dict[str, Any]]:
    """The gates of all rounds in order, with their limits; none without that stage."""
    steps = [step for step in read_ancestors(out) if step.stage == "gate"]
    return [
        {
            "round": step.label,
            **json.loads((step.path / "gate.json").read_text()),
            **{name: step.config.get(name) for name in ("min_gain", "kl_budget")},
        }
        for step in steps
    ]
