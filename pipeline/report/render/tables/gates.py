"""The table of what the gate chose: each candidate, what it was held against, and how it came out."""

from pipeline.report.formatting import UNKNOWN, Row, number, signed
from pipeline.report.render.table import Cell, Sheet


def gates(report: Row) -> Sheet:
    """The last gate saw what all gates before it saw."""
    columns = ("model", "score on dev", "held against", "gain", "KL to sft", "outcome")
    if not report["gates"]:
        return Sheet("Gate", "", columns, [])
    last = report["gates"][-1]
    story = "; ".join(f"after round {gate['round']} {gate['chosen']}" for gate in report["gates"])
    note = f"What went on: {story}. By {last['scorer']} on dev prompts, each held against the best before it."
    return Sheet(
        "Gate", note, columns, [_candidate(row) for row in last["candidates"]], last["chosen"]
    )


def _candidate(row: Row) -> list[Cell]:
    return [
        Cell(row["model"]),
        Cell(number(row["mean"]), f"{row['n']} prompts"),
        Cell(row["against"] or UNKNOWN),
        Cell(signed(row["gain"])),
        Cell(number(row["kl"], 2)),
        Cell(row["outcome"]),
    ]
