"""What the gate chose after each round and why, read from the steps that the report descends from."""

import json
from pathlib import Path
from typing import Any

from pipeline.report.analysis.ancestors import ancestors_of


def gates(out: Path) -> list[dict[str, Any]]:
    """The gates of all rounds in order; none without that stage."""
    of = [step for step in ancestors_of(out) if step.stage == "gate"]
    return [
        {"round": step.label, **json.loads((step.path / "gate.json").read_text())} for step in of
    ]
