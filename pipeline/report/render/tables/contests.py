"""The table of contests: who won on how many prompts, by scores and by judges."""

from pipeline.report.formatting import Row, count, interval, p_value, share
from pipeline.report.render.table import Cell, Sheet, detail

STEADY = 0.15, 0.85  # plain win rates outside of which the length-adjusted one bends


def duels(report: Row) -> Sheet:
    columns = (
        "contest",
        "judge",
        "win rate",
        "wins",
        "ties",
        "losses",
        "p",
        "length-adjusted",
        "flips",
        "failed",
    )
    note = (
        "By the mean score on each prompt, or by a judge's verdicts that hold in both orders; a tie is half a win, "
        "p is the sign test's on decisive prompts, corrected for a judge's contests. Length-adjusted: were no answer "
        "longer than the other's; flips: prompts on which a judge changes its mind with the order."
    )
    return Sheet("Win, tie, loss", note, columns, [_duel(duel) for duel in report["duels"]])


def _duel(duel: Row) -> list[Cell]:
    low, high = (duel["low"], duel["high"]) if duel["low"] is not None else (0.5, 0.5)
    tone = "up" if low > 0.5 else "down" if high < 0.5 else ""
    rate = Cell(share(duel["win_rate"]), detail(interval(duel, share)), tone)
    counts = [Cell(count(duel[key])) for key in ("wins", "ties", "losses")]
    return [
        Cell(f"{duel['a']} against {duel['b']}"),
        Cell(duel["judge"]),
        rate,
        *counts,
        Cell(p_value(duel["p_holm"])),
        _adjusted(duel),
        Cell(share(duel["flip_rate"])),
        Cell(count(duel["failed"])),
    ]


def _adjusted(duel: Row) -> Cell:
    """The curve bends towards the middle where one side wins nearly all."""
    rate = duel["length_adjusted"]
    if rate is None:
        return Cell(share(rate))
    warning = "" if STEADY[0] <= duel["win_rate"] <= STEADY[1] else "read the plain rate"
    ends = {"low": duel["length_adjusted_low"], "high": duel["length_adjusted_high"]}
    return Cell(share(rate), detail(interval(ends, share), warning))
