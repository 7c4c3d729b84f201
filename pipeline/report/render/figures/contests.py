"""Figures of contests: who won how many prompts, how sure that is, how often a judge flipped."""

from collections.abc import Sequence

from pipeline.report.formatting import (
    ReportRow,
    fit_scale,
    format_count,
    format_interval,
    format_p_value,
    format_share,
)
from pipeline.report.render import svg
from pipeline.report.render.svg import ROW_HEIGHT, WIDTH, Figure

SIDES = (("wins", "win", "on-colour"), ("ties", "tie", ""), ("losses", "loss", "on-colour"))


def draw_contests(report: ReportRow) -> list[Figure]:
    figures = [draw_rates(report), draw_sides(report), draw_flips(report)]
    return [figure for figure in figures if figure is not None]


def select_contests(report: ReportRow) -> list[ReportRow]:
    """The contests of each judge and of the primary scorer; the table has the others."""
    scorers = {name for model in report["models"] for name in model["metrics"]}
    others = scorers - {report["evaluation"]["scorer"]}
    shown = [duel for duel in report["duels"] if duel["judge"] not in others]
    return [duel for duel in shown if duel["wins"] + duel["ties"] + duel["losses"]]


def name_contest(duel: ReportRow, contests: Sequence[ReportRow]) -> str:
    """With its judge where the contests have several."""
    has_judges = len({each["judge"] for each in contests}) > 1
    by = f", {duel['judge']}" if has_judges else ""
    return f"{duel['a']} against {duel['b']}{by}"


def draw_rates(report: ReportRow) -> Figure | None:
    """Each win rate with its interval against the 50 % of chance."""
    contests = select_contests(report)
    if not contests:
        return None
    ends = [end for duel in contests for end in _interval_ends(duel)]
    scale = fit_scale([0.5, *ends], 20, WIDTH - 72)
    bottom = 40 * len(contests) + 8
    texts = [f"{100 * tick:g} %" for tick in scale.ticks]
    parts = [
        *svg.x_axis(scale, 4, bottom, texts=texts),
        svg.line((scale(0.5), 4), (scale(0.5), bottom), "half"),
    ]
    for index, duel in enumerate(contests):
        y, (low, high) = 40 * index + 30, _interval_ends(duel)
        kind = "win" if low > 0.5 else "loss" if high < 0.5 else "c0"
        parts += [
            svg.label((0, y - 12), name_contest(duel, contests), "name halo"),
            svg.line((scale(low), y), (scale(high), y), f"whisker {kind}"),
            svg.dot((scale(duel["win_rate"]), y), kind),
            svg.label((WIDTH - 4, y + 4), format_share(duel["win_rate"]), "value", "end"),
        ]
    rows = [
        (
            name_contest(duel, contests),
            format_share(duel["win_rate"]),
            format_interval(duel, format_share),
        )
        for duel in contests
    ]
    caption = "A tie is half a win. An interval that touches 50 % shows no difference."
    drawing = svg.render("Win rates", bottom + 24, parts)
    return Figure("Win rates", caption, drawing, ("contest", "win rate", "interval"), rows)


def _interval_ends(duel: ReportRow) -> tuple[float, float]:
    if duel["low"] is None:
        return duel["win_rate"], duel["win_rate"]
    return duel["low"], duel["high"]


def draw_flips(report: ReportRow) -> Figure | None:
    """Shows a judge that follows the order of the answers more than the answers."""
    judged = [duel for duel in select_contests(report) if duel["flip_rate"] is not None]
    if not judged:
        return None
    names = [name_contest(duel, report["duels"]) for duel in judged]
    parts: list[str] = []
    for index, (duel, name) in enumerate(zip(judged, names, strict=True)):
        y = 2 * ROW_HEIGHT * index * 0.75
        width = (WIDTH - 66) * duel["flip_rate"]
        parts += [
            svg.label((0, y + 14), name, "name"),
            svg.bar((0, y + 21), WIDTH - 66, 12, "tie"),
            svg.bar((0, y + 21), max(width, 1), 12, "loss"),
            svg.label((WIDTH - 4, y + 31), format_share(duel["flip_rate"]), "value", "end"),
        ]
    caption = (
        "Of the prompts with two different answers, those whose verdict changed when the answers"
        " changed places; each counts as a tie."
    )
    rows = [
        (name, format_share(duel["flip_rate"])) for duel, name in zip(judged, names, strict=True)
    ]
    drawing = svg.render("Judge flips", ROW_HEIGHT * 1.5 * len(judged), parts)
    return Figure("Judge flips", caption, drawing, ("contest", "flips"), rows)


def draw_sides(report: ReportRow) -> Figure | None:
    """Wins, ties and losses as parts of one bar."""
    contests = select_contests(report)
    if not contests:
        return None
    parts: list[str] = []
    for index, duel in enumerate(contests):
        parts += [svg.label((0, 46 * index + 14), name_contest(duel, contests), "name")]
        parts += _draw_split_bar(duel, 46 * index + 20)
    swatches = [(name, f"swatch {kind}") for name, kind, _ in SIDES]
    key, height = svg.legend(swatches, 0, 46 * len(contests) + 20)
    title = "Win, tie, loss"
    caption = "Prompts on which the first model has the higher, an equal or the lower mean score."
    columns = ("a", "b", "judge", "wins", "ties", "losses", "win rate", "interval", "p")
    rows = [_contest_row(duel) for duel in contests]
    return Figure(title, caption, svg.render(title, height, [*parts, *key]), columns, rows)


def _draw_split_bar(duel: ReportRow, top: float) -> list[str]:
    parts, x = [], 0.0
    total = sum(duel[key] for key, _, _ in SIDES)
    for key, kind, ink in SIDES:
        width = WIDTH * duel[key] / total
        if duel[key]:
            parts.append(svg.bar((x, top), width - 1.5, 18, kind))
        if width > 28:
            parts.append(svg.label((x + 7, top + 13.5), str(duel[key]), f"inside {ink}".strip()))
        x += width
    return parts


def _contest_row(duel: ReportRow) -> tuple[str, ...]:
    counts = [format_count(duel[key]) for key, _, _ in SIDES]
    rate, ends = format_share(duel["win_rate"]), format_interval(duel, format_share)
    return (
        duel["a"],
        duel["b"],
        duel["judge"],
        *counts,
        rate,
        ends,
        format_p_value(duel["p_holm"]),
    )
