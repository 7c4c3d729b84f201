"""sweep.html: a sweep's points, which one to take, and its cost in KL. Made from points.json.

The best point has the highest score on the evaluated split within the KL budget. A point is
dominated when another one has at least its score at no more KL, and is better in one of the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import pluralize
from pipeline.report.formatting import (
    UNKNOWN,
    explain_spread,
    fit_scale,
    format_number,
    measure_reach,
)
from pipeline.report.render import svg
from pipeline.report.render.environment import render_document
from pipeline.report.render.svg import WIDTH, Figure, SvgPoint
from pipeline.report.render.table import Cell, ReportTable, gain_cell

SweepPoint = Mapping[str, Any]
HEADER_HEIGHT, CELL_HEIGHT = 24, 44  # of a heat map


@dataclass(frozen=True)
class SweepGrid:
    """A sweep's points, the split they were evaluated on, the KL budget and the best, if any."""

    name: str
    points: Sequence[SweepPoint]
    split: str
    budget: float | None
    best: SweepPoint | None
    command: str  # runs the best point again, evaluated on test
    report: str | None  # of that run, once it exists

    @property
    def axes(self) -> list[str]:
        """The knobs that differ between points, in the order in which they were given."""
        values = [parse_overrides(point) for point in self.points]
        keys = dict.fromkeys(key for of_point in values for key in of_point)
        return [key for key in keys if len({of_point.get(key) for of_point in values}) > 1]

    @property
    def finished_points(self) -> list[SweepPoint]:
        return [point for point in self.points if point.get("score") is not None]


def parse_overrides(point: SweepPoint) -> dict[str, str]:
    return dict(word.split("=", 1) for word in point["overrides"])


def choose_best(points: Sequence[SweepPoint], budget: float | None) -> SweepPoint | None:
    """The highest score within the budget; among equals the one closer to SFT, then the first."""
    scored = [point for point in points if point.get("score") is not None]
    within = [point for point in scored if budget is None or _kl(point) <= budget]
    return min(within, key=lambda p: (-p["score"], _kl(p), p["point"]), default=None)


def is_dominated(point: SweepPoint, points: Sequence[SweepPoint]) -> bool:
    score, kl = point["score"], _kl(point)
    return any(
        p["score"] >= score and _kl(p) <= kl and (p["score"] > score or _kl(p) < kl) for p in points
    )


def _kl(point: SweepPoint) -> float:
    return float("inf") if point["kl"] is None else point["kl"]


# ── the page ────────────────────────────────────────────────────────────────


def render_sweep(grid: SweepGrid) -> str:
    figures = [
        draw_heat_map(grid, "score", f"Score on {grid.split}"),
        draw_heat_map(grid, "kl", "KL to sft, nats"),
        draw_frontier(grid),
    ]
    return render_document(
        "sweep.html",
        title=write_headline(grid),
        badge=f"{len(grid.finished_points)} of {len(grid.points)} points",
        better=(grid.best.get("better") or "yes") if grid.best else "no",
        lead=write_lead(grid),
        grid=grid,
        drawings=[figure for figure in figures if figure],
        points=build_points(grid),
    )


def write_headline(grid: SweepGrid) -> str:
    if grid.best is not None:
        name, equal = _name_point(grid, grid.best), len(_find_equal(grid, grid.best)) - 1
        ties = f"; {pluralize(equal, 'other point')} scored the same" if equal else ""
        if grid.best.get("better") not in (None, "yes"):
            return f"{grid.name}: the highest point, {name}, is not clearly better than sft{ties}"
        return f"{grid.name}: take {name}{ties}"
    has_budget = grid.finished_points and grid.budget is not None
    within = f" within {format_number(grid.budget, 2)} nats" if has_budget else ""
    return f"{grid.name}: no point to take{within}"


def write_lead(grid: SweepGrid) -> str:
    if grid.best is None:
        if grid.budget is None or not grid.finished_points:
            return "No point has finished with a score: see the logs."
        return (
            "No point has finished with a score and a KL within the budget."
            " Raise sweep.kl_budget, or see the logs."
        )
    best, budget = grid.best, grid.budget
    nats = "an unknown distance" if best["kl"] is None else f"{format_number(best['kl'], 2)} nats"
    within = _list_within(grid)
    is_alone = len(_find_equal(grid, best)) == 1
    rank = (
        f"{'the highest' if is_alone else 'no lower than any'} of {pluralize(len(within), 'point')}"
    )
    known = best.get("sft_score") is not None
    against = f" (sft {format_number(best['sft_score'])})" if known else ""
    limit = "" if budget is None else f" within sweep.kl_budget={budget:g}"
    warning = (
        ""
        if grid.split == "dev"
        else " It was chosen on test, so its score there is biased upwards: use evaluate.split=dev."
    )
    spread = f" {explain_spread(best['gain'])}" if "gain" in best else ""
    return (
        f"It scores {format_number(best['score'])}{against} on {grid.split} at {nats} from sft,"
        f" {rank}{limit}.{spread}{warning}"
    )


def _list_within(grid: SweepGrid) -> list[SweepPoint]:
    budget = grid.budget
    return [point for point in grid.finished_points if budget is None or _kl(point) <= budget]


def _find_equal(grid: SweepGrid, best: SweepPoint) -> list[SweepPoint]:
    """The points within the budget that score as the best one does, that one included."""
    return [point for point in _list_within(grid) if point["score"] == best["score"]]


def _name_point(grid: SweepGrid, point: SweepPoint) -> str:
    values = parse_overrides(point)
    return (
        ", ".join(f"{key}={values.get(key, UNKNOWN)}" for key in grid.axes)
        or f"point {point['point']}"
    )


# ── figures and the table ───────────────────────────────────────────────────


def draw_heat_map(grid: SweepGrid, what: str, title: str) -> Figure | None:
    """Two knobs against each other.

    With a third, each cell has the highest score over it, and that point's KL.
    """
    axes = grid.axes[:2]
    if not axes or not grid.finished_points:
        return None
    columns, rows = axes[-1], axes[0] if len(axes) == 2 else None
    best_of_cell: dict[tuple[str, str], SweepPoint] = {}
    for point in sorted(grid.finished_points, key=lambda p: p["score"]):
        best_of_cell[_find_cell(point, rows, columns)] = point
    cells = {_find_cell(point, rows, columns) for point in grid.points}
    down, across = (_sort_values({cell[side] for cell in cells}) for side in (0, 1))
    left = 12 + 8 * max((len(name) for name in down), default=0)
    width = (WIDTH - left) / len(across)
    known = [point[what] for point in best_of_cell.values() if point[what] is not None]
    parts = [
        svg.label((left + width * (i + 0.5), HEADER_HEIGHT - 8), name, "tick", "middle")
        for i, name in enumerate(across)
    ]
    for i, row in enumerate(down):
        y = HEADER_HEIGHT + CELL_HEIGHT * i
        parts.append(svg.label((left - 8, y + CELL_HEIGHT / 2 + 4), row, "tick", "end"))
        for j, column in enumerate(across):
            if (row, column) not in cells:  # a sweep need not be a full grid
                continue
            best = best_of_cell.get((row, column))
            parts += _draw_cell(best, what, (left + width * j, y), width, known, grid.best)
    caption = f"{rows} down, {columns} across" if rows else columns
    drawing = svg.render(title, HEADER_HEIGHT + CELL_HEIGHT * len(down) + 4, parts)
    table = [
        [_name_point(grid, point), format_number(point[what])] for point in best_of_cell.values()
    ]
    framed = " The best point is framed." if grid.best else ""
    return Figure(title, f"{caption}.{framed}", drawing, ("point", what), table)


def _find_cell(point: SweepPoint, rows: str | None, columns: str) -> tuple[str, str]:
    values = parse_overrides(point)
    return values.get(rows or "", ""), values.get(columns, "")


def _draw_cell(
    point: SweepPoint | None,
    what: str,
    at: SvgPoint,
    width: float,
    known: Sequence[float],
    best: SweepPoint | None,
) -> list[str]:
    value = None if point is None else point[what]
    middle = (at[0] + width / 2, at[1] + CELL_HEIGHT / 2 + 4)
    if value is None:
        return [svg.label(middle, "failed" if point is None else UNKNOWN, "tick", "middle")]
    low, high = min(known), max(known)
    shade = (value - low) / (high - low) if high > low else 0.5
    kind = "heat best" if point is best else "heat"
    return [
        svg.shaded_bar(at, width - 3, CELL_HEIGHT - 3, kind, shade),
        svg.label(middle, format_number(value), "name", "middle"),
    ]


def _sort_values(names: set[str]) -> list[str]:
    """Numbers by size, words by letter."""

    def sort_key(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name), name
        except ValueError:
            return 1, 0.0, name

    return sorted(names, key=sort_key)


def draw_frontier(grid: SweepGrid) -> Figure | None:
    """Each point's score against its KL. Dominated points are grey."""
    points = [point for point in grid.finished_points if point["kl"] is not None]
    if len(points) < 2:
        return None
    across = fit_scale([0.0, *(max(point["kl"], 0.0) for point in points)], 52, WIDTH - 24)
    up = fit_scale([point["score"] for point in points], 200, 20)

    def place(point: SweepPoint) -> SvgPoint:
        return across(max(point["kl"], 0.0)), up(point["score"])

    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 20, 200, "KL to sft, nats"),
    ]
    if grid.budget is not None and across.low <= grid.budget <= across.high:
        x = across(grid.budget)
        parts.append(svg.line((x, 20), (x, 200), "way dashed"))
    frontier = sorted((point for point in points if not is_dominated(point, points)), key=_kl)
    parts.append(svg.curve([place(point) for point in frontier], "way"))
    names: list[SvgPoint] = []
    for point in sorted(points, key=lambda p: is_dominated(p, points)):
        kind = "cb" if is_dominated(point, points) else "c2"
        names.append(_find_free_place(place(point), names))
        parts += [
            svg.dot(place(point), kind, 7 if point is grid.best else 5),
            svg.label(names[-1], str(point["point"]), "tick halo"),
        ]
    rows = [
        [
            str(point["point"]),
            _name_point(grid, point),
            format_number(point["kl"], 2),
            format_number(point["score"]),
            "yes" if is_dominated(point, points) else "",
        ]
        for point in points
    ]
    title = "Score against KL"
    larger = ", the best one larger" if grid.best else ""
    caption = (
        f"Each point by its number{larger}. Grey: another one scores no lower with no more KL."
    )
    columns = ("point", "knobs", "KL, nats", "score", "dominated")
    return Figure(title, caption, svg.render(title, 240, parts), columns, rows)


def _find_free_place(at: SvgPoint, names: Sequence[SvgPoint]) -> SvgPoint:
    """A place next to a point where no other name is yet."""
    offsets = ((8, -6), (8, 16), (-20, -6), (-20, 16))
    places = [(at[0] + right, at[1] + down) for right, down in offsets]
    for place in places:
        if all(abs(place[0] - x) > 16 or abs(place[1] - y) > 12 for x, y in names):
            return place
    return places[0]


def build_points(grid: SweepGrid) -> ReportTable:
    gains = [point["gain"] for point in grid.points if "gain" in point]
    of_seeds = ("Δ over sft", "between seeds", "between prompts") if gains else ()
    figures = f"score on {grid.split}", *of_seeds, "KL to sft, nats"
    rows = []
    for point in grid.points:
        values = parse_overrides(point)
        knobs = [Cell(values.get(key, UNKNOWN)) for key in grid.axes]
        cells = [Cell(format_number(point.get("score")))]
        cells += _list_gain_cells(point.get("gain")) if gains else []
        cells += [Cell(format_number(point.get("kl"), 2)), Cell(point["status"])]
        rows.append([Cell(str(point["point"])), *knobs, *cells])
    chosen = str(grid.best["point"]) if grid.best else None
    means = "Scores, Δ and KL are means over a point's seeds. " if gains else ""
    note = f"{means}The log of a failed point shows why it failed."
    return ReportTable("Points", note, ["point", *grid.axes, *figures, "status"], rows, chosen)


def _list_gain_cells(gain: Mapping[str, Any] | None) -> list[Cell]:
    """Δ with its interval over seeds and prompts, and how far each of the two alone reaches."""
    if gain is None:
        return [Cell(UNKNOWN)] * 3
    reaches = {name: measure_reach(gain["between"][name]) for name in ("seeds", "prompts")}
    return [
        gain_cell(gain),
        *(
            Cell(f"±{format_number(reach)}", "the wider" if name == gain["wider"] else "")
            for name, reach in reaches.items()
        ),
    ]
