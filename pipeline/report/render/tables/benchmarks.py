"""The report's table of benchmarks: each model's figure, the chosen model's difference to SFT, what it may lose."""

from collections.abc import Sequence

from pipeline.errors import pluralize
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.formatting import UNKNOWN, Row, count, interval, number, signed
from pipeline.report.render.table import Cell, Sheet

STATES = {"kept": "kept", "perhaps": "perhaps lost", "lost": "lost", "unknown": "not known"}


def benchmarks(report: Row) -> Sheet:
    rows = [row for row in report["benchmarks"] if row["chief"] or row["absent"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    chosen = (
        report["exam"]["chosen"] if report["exam"]["chosen"] != SFT else None
    )  # which has no difference
    columns = (
        "benchmark",
        "figure",
        "questions",
        *models,
        *([f"Δ {chosen}"] if chosen in models else []),
    )
    names = dict.fromkeys(row["benchmark"] for row in rows)
    note = (
        "One figure of each with its standard error, and the paired difference to sft on the same questions;"
        " report.json has the others."
    )
    return Sheet(
        "Benchmarks", note, columns, [_benchmark(name, rows, models, chosen) for name in names]
    )


def _benchmark(
    name: str, rows: Sequence[Row], models: Sequence[str], chosen: str | None
) -> list[Cell]:
    own = {row["model"]: row for row in rows if row["benchmark"] == name}
    there = [row for row in own.values() if not row["absent"]]
    questions = Cell(count(there[0]["n"]), _cut(there)) if there else Cell(UNKNOWN)
    figures = [_figure(own.get(model)) for model in models]
    gain = [_gain(own.get(chosen))] if chosen in models else []
    return [Cell(name), Cell(there[0]["metric"] if there else "absent"), questions, *figures, *gain]


def _cut(there: Sequence[Row]) -> str:
    """lm-eval cuts a prompt that does not fit into the context."""
    most = max(row["cut"] for row in there)
    return f"{pluralize(most, 'request', grouped=True)} cut to fit" if most else ""


def _figure(row: Row | None) -> Cell:
    if row is None or row["absent"]:
        return Cell(UNKNOWN)
    return Cell(
        number(row["value"]), f"± {number(row['stderr'])}" if row["stderr"] is not None else ""
    )


def _gain(row: Row | None) -> Cell:
    gain = row["gain"] if row else None
    if row is None or gain is None or gain["low"] is None:
        return Cell(UNKNOWN)
    up, down = (
        (gain["low"] > 0, gain["high"] < 0)
        if row["higher_is_better"] is not False
        else _flipped(gain)
    )
    return Cell(
        signed(gain["mean"]), interval(gain, signed), "up" if up else "down" if down else ""
    )


def _flipped(gain: Row) -> tuple[bool, bool]:
    return gain["high"] < 0, gain["low"] > 0


def retained(report: Row) -> Sheet:
    columns = ("capability", "may fall by", "change", "verdict")
    rows = [_retained(row) for row in report["retention"]]
    note = "What evaluate.retention guards: lost where the whole interval lies below the limit, kept where none of it."
    return Sheet("Retention", note, columns, rows)


def _retained(row: Row) -> list[Cell]:
    change, tone = row["change"], {"kept": "up", "lost": "down"}.get(row["state"], "")
    told = Cell(signed(change["mean"]), interval(change, signed)) if change else Cell(UNKNOWN)
    return [
        Cell(row["name"]),
        Cell(number(row["limit"])),
        told,
        Cell(STATES[row["state"]], "", tone),
    ]
