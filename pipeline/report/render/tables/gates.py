"""The table of what the gate chose: each candidate, what it was compared with, and the outcome."""

from pipeline.errors import pluralize
from pipeline.report.formatting import UNKNOWN, ReportRow, format_number, format_signed
from pipeline.report.render.table import Cell, ReportTable


def build_gates(report: ReportRow) -> ReportTable:
    """From the last gate, which saw every candidate of the gates before it."""
    columns = ("model", "score on dev", "compared with", "gain", "KL to sft", "outcome")
    if not report["gates"]:
        return ReportTable("Gate", "", columns, [])
    last = report["gates"][-1]
    chosen = "; ".join(f"after {_name_moment(gate)} {gate['chosen']}" for gate in report["gates"])
    note = (
        f"Chosen: {chosen}. By {last['scorer']} on dev prompts,"
        f" each candidate against the best before it.{_describe_limits(last)}"
    )
    rows = [_candidate_row(row) for row in last["candidates"]]
    return ReportTable("Gate", note, columns, rows, last["chosen"])


def _name_moment(gate: ReportRow) -> str:
    return f"round {gate['round']}" if isinstance(gate["round"], int) else "merging"


def _describe_limits(gate: ReportRow) -> str:
    """What a candidate had to keep to; a report of an earlier version does not have it."""
    gain, nats = gate.get("min_gain"), gate.get("kl_budget")
    limits = [
        *([f"gains more than {format_number(gain)}"] if gain is not None else []),
        *([f"stays within {nats:g} nats"] if nats is not None else []),
    ]
    return f" Better: it {' and '.join(limits)}." if limits else ""


def _candidate_row(row: ReportRow) -> list[Cell]:
    return [
        Cell(row["model"]),
        Cell(format_number(row["mean"]), pluralize(row["n"], "prompt")),
        Cell(row["against"] or UNKNOWN),
        Cell(format_signed(row["gain"])),
        Cell(format_number(row["kl"], 2)),
        Cell(row["outcome"]),
    ]
