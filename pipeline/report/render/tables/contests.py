"""The table of contests: who won on how many prompts, by scores and by judges."""

from pipeline.report.formatting import (
    ReportRow,
    format_count,
    format_interval,
    format_p_value,
    format_share,
)
from pipeline.report.render.table import Cell, ReportTable, join_details

PLAIN_RATE_RANGE = 0.15, 0.85  # of plain win rates; outside it an adjusted one is biased


def build_duels(report: ReportRow) -> ReportTable:
    columns = (
        "contest",
        "judge",
        "win rate",
        "wins",
        "ties",
        "losses",
        "p",
        "length-adjusted",
        "style-adjusted",
        "flips",
        "failed",
    )
    note = (
        "By the mean score on each prompt, or by a judge's verdicts that hold in both orders. A tie"
        " is half a win. p is from the sign test on decisive prompts, corrected for a judge's"
        " contests. Length-adjusted: the rate if both answers had the same length; style-adjusted:"
        " if they also had as many headers, lists and bold words for their length. Flips: of the"
        " prompts with two different answers, those on which a judge's verdict depends on the"
        " order of the answers."
    )
    rows = [_duel_row(duel) for duel in report["duels"]]
    return ReportTable("Win, tie, loss", note, columns, rows)


def _duel_row(duel: ReportRow) -> list[Cell]:
    low, high = (duel["low"], duel["high"]) if duel["low"] is not None else (0.5, 0.5)
    tone = "up" if low > 0.5 else "down" if high < 0.5 else ""
    ends = join_details(format_interval(duel, format_share))
    return [
        Cell(f"{duel['a']} against {duel['b']}"),
        Cell(duel["judge"]),
        Cell(format_share(duel["win_rate"]), ends, tone),
        *(Cell(format_count(duel[key])) for key in ("wins", "ties", "losses")),
        Cell(format_p_value(duel["p_holm"])),
        _adjusted_cell(duel, "length_adjusted"),
        _adjusted_cell(duel, "style_adjusted"),
        Cell(format_share(duel["flip_rate"])),
        Cell(format_count(duel["failed"])),
    ]


def _adjusted_cell(duel: ReportRow, name: str) -> Cell:
    """Where one side wins nearly everything, the adjusted rate bends towards the middle."""
    rate = duel.get(name)
    if rate is None:
        return Cell(format_share(rate))
    low, high = PLAIN_RATE_RANGE
    warning = "" if low <= duel["win_rate"] <= high else "read the plain rate"
    ends = {"low": duel[f"{name}_low"], "high": duel[f"{name}_high"]}
    return Cell(format_share(rate), join_details(format_interval(ends, format_share), warning))
