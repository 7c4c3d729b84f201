"""sweep.html: a sweep's points beside each other, which one to take, and what it costs in KL. Made from points.json.

The best point is chosen on the examined split inside the KL budget; a point is dominated when another one scores no
lower with no more KL, and is better in one of the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.errors import pluralize
from pipeline.report import formatting
from pipeline.report.formatting import UNKNOWN, number
from pipeline.report.render import svg
from pipeline.report.render.page import document, figures_html, section_html
from pipeline.report.render.svg import WIDTH, Figure
from pipeline.report.render.table import Cell, Sheet

Point = Mapping[str, Any]
TOP, CELL = 24, 44  # of a heat map: the column's names, a row's height


@dataclass(frozen=True)
class Grid:
    """A sweep to be shown: its points, the split they were examined on, the KL budget and the best one, if any."""

    name: str
    points: Sequence[Point]
    split: str
    budget: float | None
    best: Point | None
    command: str  # what runs the best point again, examined on test
    report: str | None  # where that run's report lies, once it has been made

    @property
    def axes(self) -> list[str]:
        """The knobs that differ between points, in the order in which they were given."""
        keys = dict.fromkeys(key for point in self.points for key in values(point))
        return [key for key in keys if len({values(point).get(key) for point in self.points}) > 1]

    @property
    def done(self) -> list[Point]:
        return [point for point in self.points if point.get("score") is not None]


def values(point: Point) -> dict[str, str]:
    return dict(word.split("=", 1) for word in point["overrides"])


def best_of(points: Sequence[Point], budget: float | None) -> Point | None:
    """The highest score within the budget; among equals the one nearer to SFT, then the first."""
    fits = [
        p for p in points if p.get("score") is not None and (budget is None or (_kl(p) <= budget))
    ]
    return min(fits, key=lambda p: (-p["score"], _kl(p), p["point"]), default=None)


def dominated(point: Point, points: Sequence[Point]) -> bool:
    score, kl = point["score"], _kl(point)
    return any(
        p["score"] >= score and _kl(p) <= kl and (p["score"] > score or _kl(p) < kl) for p in points
    )


def _kl(point: Point) -> float:
    return float("inf") if point["kl"] is None else point["kl"]


# ── the page ──────────────────────────────────────────────────────────────────────────────────────────────────────


def grid_page(grid: Grid) -> str:
    drawn = [
        heat(grid, "score", f"Score on {grid.split}"),
        heat(grid, "kl", "KL to sft, nats"),
        frontier(grid),
    ]
    figures = figures_html([figure for figure in drawn if figure])
    sections = [_again(grid), figures, section_html(all_points(grid))]
    told = (
        "yes" if grid.best else "no",
        f"{len(grid.done)} of {len(grid.points)} points",
        headline(grid),
        lead(grid),
    )
    return document(told, sections)


def headline(grid: Grid) -> str:
    if grid.best is None:
        within = (
            f" within {number(grid.budget, 2)} nats"
            if grid.done and grid.budget is not None
            else ""
        )
        return f"{grid.name}: no point to take{within}"
    return f"{grid.name}: take {_named(grid, grid.best)}"


def lead(grid: Grid) -> str:
    if grid.best is None:
        if grid.budget is None or not grid.done:
            return "No point has finished with a score: see the logs."
        return "No point has finished with a score and a KL inside the budget. Raise sweep.kl_budget, or see the logs."
    far = "an unknown distance" if grid.best["kl"] is None else f"{number(grid.best['kl'], 2)} nats"
    said = f"It scores {number(grid.best['score'])} on {grid.split} at {far} from sft"
    within = [p for p in grid.done if grid.budget is None or _kl(p) <= grid.budget]
    alone = sum(p["score"] == grid.best["score"] for p in within) == 1
    among = (
        f", {'the highest' if alone else 'no lower than any'} of {pluralize(len(within), 'point')}"
    )
    budget = "" if grid.budget is None else f" within sweep.kl_budget={grid.budget:g}"
    warning = (
        ""
        if grid.split == "dev"
        else " It was chosen on test, so its score there flatters it: use exam.split=dev."
    )
    return f"{said}{among}{budget}.{warning}"


def _named(grid: Grid, point: Point) -> str:
    return (
        ", ".join(f"{key}={values(point).get(key, UNKNOWN)}" for key in grid.axes)
        or f"point {point['point']}"
    )


def _again(grid: Grid) -> str:
    if grid.best is None:
        return ""
    link = f'<p><a href="{escape(grid.report)}">Its report on test</a></p>' if grid.report else ""
    return f"<section><h2>The best point again, on test</h2><p><code>{escape(grid.command)}</code></p>{link}</section>"


# ── figures and the table ─────────────────────────────────────────────────────────────────────────────────────────


def heat(grid: Grid, what: str, title: str) -> Figure | None:
    """Two knobs against each other; with a third, each cell has the highest score over it, and that point's KL."""
    axes = grid.axes[:2]
    if not axes or not grid.done:
        return None
    columns, rows = axes[-1], axes[0] if len(axes) == 2 else None
    cells: dict[tuple[str, str], Point] = {}
    for point in sorted(grid.done, key=lambda p: p["score"]):
        cells[values(point).get(rows or "", ""), values(point).get(columns, "")] = point
    places = _places(grid, rows, columns)
    down, across = (_in_order({place[side] for place in places}) for side in (0, 1))
    left = 12 + 8 * max((len(name) for name in down), default=0)
    wide = (WIDTH - left) / len(across)
    known = [point[what] for point in cells.values() if point[what] is not None]
    parts = [
        svg.words((left + wide * (i + 0.5), TOP - 8), name, "tick", "middle")
        for i, name in enumerate(across)
    ]
    for i, row in enumerate(down):
        parts.append(svg.words((left - 8, TOP + CELL * i + CELL / 2 + 4), row, "tick", "end"))
        for j, column in enumerate(across):
            if (row, column) not in places:  # a sweep need not be a whole grid
                continue
            parts += _cell(
                cells.get((row, column)),
                what,
                (left + wide * j, TOP + CELL * i),
                wide,
                known,
                grid.best,
            )
    caption = f"{rows} down, {columns} across" if rows else columns
    drawing = svg.drawing(title, TOP + CELL * len(down) + 4, parts)
    table = [[_named(grid, point), number(point[what])] for point in cells.values()]
    return Figure(title, f"{caption}. The best point is framed.", drawing, ("point", what), table)


def _places(grid: Grid, rows: str | None, columns: str) -> list[tuple[str, str]]:
    return [
        (values(point).get(rows or "", ""), values(point).get(columns, "")) for point in grid.points
    ]


def _cell(
    point: Point | None,
    what: str,
    at: svg.Point,
    wide: float,
    known: Sequence[float],
    best: Point | None,
) -> list[str]:
    value = None if point is None else point[what]
    middle = at[0] + wide / 2, at[1] + CELL / 2 + 4
    if value is None:
        return [svg.words(middle, "failed" if point is None else UNKNOWN, "tick", "middle")]
    low, high = min(known), max(known)
    shade = (value - low) / (high - low) if high > low else 0.5
    kind = "heat best" if point is best else "heat"
    return [
        svg.shaded(at, wide - 3, CELL - 3, kind, shade),
        svg.words(middle, number(value), "name", "middle"),
    ]


def _in_order(names: set[str]) -> list[str]:
    """Numbers by size, words by letter."""

    def size(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name), name
        except ValueError:
            return 1, 0.0, name

    return sorted(names, key=size)


def frontier(grid: Grid) -> Figure | None:
    """What each point bought and how far it went for it; what another point gives for less is grey."""
    spots = [point for point in grid.done if point["kl"] is not None]
    if len(spots) < 2:
        return None
    across = formatting.scale([0.0, *(max(point["kl"], 0.0) for point in spots)], 52, WIDTH - 24)
    up = formatting.scale([point["score"] for point in spots], 200, 20)
    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 20, 200, "KL to sft, nats"),
    ]
    if grid.budget is not None and across.low <= grid.budget <= across.high:
        parts.append(svg.line((across(grid.budget), 20), (across(grid.budget), 200), "way dashed"))
    undominated = sorted((p for p in spots if not dominated(p, spots)), key=_kl)
    parts.append(
        svg.curve([(across(max(p["kl"], 0.0)), up(p["score"])) for p in undominated], "way")
    )
    taken: list[svg.Point] = []
    for point in sorted(spots, key=lambda p: dominated(p, spots)):
        kind = "cb" if dominated(point, spots) else "c2"
        at = across(max(point["kl"], 0.0)), up(point["score"])
        taken.append(_free(at, taken))
        parts += [
            svg.dot(at, kind, 7 if point is grid.best else 5),
            svg.words(taken[-1], str(point["point"]), "tick halo"),
        ]
    caption = "Each point by its number, the best one larger; grey: another one scores no lower with no more KL."
    rows = [
        [
            str(p["point"]),
            _named(grid, p),
            number(p["kl"]),
            number(p["score"]),
            "yes" if dominated(p, spots) else "",
        ]
        for p in spots
    ]
    drawing = svg.drawing("Score against KL", 240, parts)
    return Figure(
        "Score against KL",
        caption,
        drawing,
        ("point", "knobs", "KL, nats", "score", "dominated"),
        rows,
    )


def _free(at: svg.Point, taken: Sequence[svg.Point]) -> svg.Point:
    """A place for a name beside its point that no other name has yet."""
    places = [
        (at[0] + right, at[1] + down) for right, down in ((8, -6), (8, 16), (-20, -6), (-20, 16))
    ]
    return next(
        (p for p in places if all(abs(p[0] - x) > 16 or abs(p[1] - y) > 12 for x, y in taken)),
        places[0],
    )


def all_points(grid: Grid) -> Sheet:
    columns = ["point", *grid.axes, f"score on {grid.split}", "KL to sft, nats", "status"]
    rows = []
    for point in grid.points:
        knobs = [Cell(values(point).get(key, UNKNOWN)) for key in grid.axes]
        figures = [Cell(number(point.get("score"))), Cell(number(point.get("kl"), 2))]
        rows.append([Cell(str(point["point"])), *knobs, *figures, Cell(point["status"])])
    chosen = str(grid.best["point"]) if grid.best else None
    return Sheet("Points", "A point that failed shows why in its own log.", columns, rows, chosen)
