"""What the gate chose after each round and why, read from the steps that the report descends from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.ancestors import ancestors_of
from pipeline.report.sheet import Cell, Sheet
from pipeline.report.wording import UNKNOWN, number, signed

Row = Mapping[str, Any]


def gates(out: Path) -> list[dict[str, Any]]:
    """The gates of all rounds in order; none without that stage."""
    of = [step for step in ancestors_of(out) if step.stage == "gate"]
    return [{"round": step.label, **json.loads((step.path / "gate.json").read_text())} for step in of]


def sheet(report: Row) -> Sheet:
    """The last gate saw what all gates before it saw."""
    columns = ("model", "score on dev", "held against", "gain", "KL to sft", "outcome")
    if not report["gates"]:
        return Sheet("Gate", "", columns, [])
    last = report["gates"][-1]
    story = "; ".join(f"after round {gate['round']} {gate['chosen']}" for gate in report["gates"])
    note = f"What went on: {story}. By {last['scorer']} on dev prompts, each held against the best before it."
    return Sheet("Gate", note, columns, [_candidate(row) for row in last["candidates"]], last["chosen"])


def _candidate(row: Row) -> list[Cell]:
    return [
        Cell(row["model"]),
        Cell(number(row["mean"]), f"{row['n']} prompts"),
        Cell(row["against"] or UNKNOWN),
        Cell(signed(row["gain"])),
        Cell(number(row["kl"], 2)),
        Cell(row["outcome"]),
    ]
