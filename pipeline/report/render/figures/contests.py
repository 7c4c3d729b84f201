"""Figures of contests: who won how many prompts, how sure that is, how often a judge changed its mind."""

from collections.abc import Sequence

from pipeline.report import formatting
from pipeline.report.formatting import Row, count, interval, p_value, share
from pipeline.report.render import svg
from pipeline.report.render.svg import ROW, WIDTH, Figure


def of_contests(report: Row) -> list[Figure]:
    made = [rates(report), sides(report), flips(report)]
    return [figure for figure in made if figure is not None]


def shown(report: Row) -> list[Row]:
    """The contests of each judge and of the primary scorer; the others stand in the table."""
    others = {name for model in report["models"] for name in model["metrics"]} - {
        report["exam"]["scorer"]
    }
    fought = [duel for duel in report["duels"] if duel["judge"] not in others]
    return [duel for duel in fought if duel["wins"] + duel["ties"] + duel["losses"]]


def named(duel: Row, beside: Sequence[Row]) -> str:
    """Its judge is named where there are several."""
    by = f", {duel['judge']}" if len({each["judge"] for each in beside}) > 1 else ""
    return f"{duel['a']} against {duel['b']}{by}"


def rates(report: Row) -> Figure | None:
    """Each win rate with its interval, beside the half that a coin would win."""
    fought = shown(report)
    if not fought:
        return None
    on = formatting.scale([0.5, *(end for duel in fought for end in _ends(duel))], 20, WIDTH - 72)
    bottom = 40 * len(fought) + 8
    texts = [f"{100 * tick:g} %" for tick in on.ticks]
    parts = [
        *svg.x_axis(on, 4, bottom, texts=texts),
        svg.line((on(0.5), 4), (on(0.5), bottom), "half"),
    ]
    for index, duel in enumerate(fought):
        y, (low, high) = 40 * index + 30, _ends(duel)
        kind = "win" if low > 0.5 else "loss" if high < 0.5 else "c0"
        parts += [
            svg.words((0, y - 12), named(duel, fought), "name halo"),
            svg.line((on(low), y), (on(high), y), f"whisker {kind}"),
            svg.dot((on(duel["win_rate"]), y), kind),
            svg.words((WIDTH - 4, y + 4), share(duel["win_rate"]), "value", "end"),
        ]
    rows = [
        (named(duel, fought), share(duel["win_rate"]), interval(duel, share)) for duel in fought
    ]
    caption = "A tie is half a win. An interval that touches 50 % tells nothing apart."
    drawing = svg.drawing("Win rates", bottom + 24, parts)
    return Figure("Win rates", caption, drawing, ("contest", "win rate", "interval"), rows)


def _ends(duel: Row) -> tuple[float, float]:
    return (
        (duel["win_rate"], duel["win_rate"]) if duel["low"] is None else (duel["low"], duel["high"])
    )


def flips(report: Row) -> Figure | None:
    """A judge that follows the order of the answers more than the answers shows it here."""
    judged = [duel for duel in shown(report) if duel["flip_rate"] is not None]
    if not judged:
        return None
    parts: list[str] = []
    for index, duel in enumerate(judged):
        y = 2 * ROW * index * 0.75
        width = (WIDTH - 66) * duel["flip_rate"]
        parts += [
            svg.words((0, y + 14), named(duel, report["duels"]), "name"),
            svg.bar((0, y + 21), WIDTH - 66, 12, "tie"),
            svg.bar((0, y + 21), max(width, 1), 12, "loss"),
            svg.words((WIDTH - 4, y + 31), share(duel["flip_rate"]), "value", "end"),
        ]
    caption = (
        "Prompts whose verdict changed when the two answers changed places; each counts as a tie."
    )
    rows = [(named(duel, report["duels"]), share(duel["flip_rate"])) for duel in judged]
    drawing = svg.drawing("Judge flips", ROW * 1.5 * len(judged), parts)
    return Figure("Judge flips", caption, drawing, ("contest", "flips"), rows)


def sides(report: Row) -> Figure | None:
    """Wins, ties and losses as parts of one bar."""
    fought = shown(report)
    if not fought:
        return None
    parts: list[str] = []
    for index, duel in enumerate(fought):
        parts += [svg.words((0, 46 * index + 14), named(duel, fought), "name")]
        parts += _split_bar(duel, 46 * index + 20)
    key, height = svg.legend(
        [(word, f"swatch {kind}") for word, kind, _ in _SIDES], 0, 46 * len(fought) + 20
    )
    drawing = svg.drawing("Win, tie, loss", height, [*parts, *key])
    columns = ("a", "b", "judge", "wins", "ties", "losses", "win rate", "interval", "p")
    caption = "Prompts on which the first model has the higher, an equal or the lower mean score."
    rows = [_contest_row(duel) for duel in fought]
    return Figure("Win, tie, loss", caption, drawing, columns, rows)


_SIDES = (("wins", "win", "on-colour"), ("ties", "tie", ""), ("losses", "loss", "on-colour"))


def _split_bar(duel: Row, top: float) -> list[str]:
    parts, x = [], 0.0
    total = sum(duel[key] for key, _, _ in _SIDES)
    for key, kind, ink in _SIDES:
        width = WIDTH * duel[key] / total
        if duel[key]:
            parts.append(svg.bar((x, top), width - 1.5, 18, kind))
        if width > 28:
            parts.append(svg.words((x + 7, top + 13.5), str(duel[key]), f"inside {ink}".strip()))
        x += width
    return parts


def _contest_row(duel: Row) -> tuple[str, ...]:
    counts = [count(duel[key]) for key, _, _ in _SIDES]
    rate = share(duel["win_rate"]), interval(duel, share), p_value(duel["p_value"])
    return (duel["a"], duel["b"], duel["judge"], *counts, *rate)
