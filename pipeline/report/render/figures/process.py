"""Figures of how the models came to be: training curves, pair funnel, time by stage. Drawn from report.json alone."""

from collections.abc import Sequence

from pipeline.report import formatting
from pipeline.report.formatting import Row, count, number, seconds, share
from pipeline.report.render import svg
from pipeline.report.render.svg import ROW, WIDTH, Figure, Point, colour
from pipeline.report.render.tables import origins

MOST_POINTS = 300
STEP = 24


def of_process(report: Row) -> list[Figure]:
    funnels = [funnel(pairs) for pairs in report["funnel"]["pairs"]]
    made = [*(curves(report, *each) for each in CURVES), *funnels, cost(report)]
    return [figure for figure in made if figure is not None]


CURVES = (
    (
        "loss",
        "Training loss",
        "On each batch; it starts where policy and reference are the same model.",
    ),
    (
        "margin",
        "Reward margin",
        "Chosen above rejected, in rewards. It can grow while the answers get worse: trust the score.",
    ),
)


def curves(report: Row, key: str, title: str, caption: str) -> Figure | None:
    lines = [
        (r["round"], which, _known(r[which], key))
        for r in report["training"]
        for which in ("curve", "dev")
    ]
    lines = [one for one in lines if one[2]]
    if not lines:
        return None
    across = formatting.scale(
        [0.0, *(x for _, _, points in lines for x, _ in points)], 52, WIDTH - 10, tight=True
    )
    up = formatting.scale([y for _, _, points in lines for _, y in points], 190, 12)
    parts = [*svg.y_axis(up, across.start, across.end), *svg.x_axis(across, 12, 190, "step")]
    for name, which, points in lines:
        spots = [(across(x), up(y)) for x, y in _thin(points)]
        dashes = " dashed" if which == "dev" else ""
        parts.append(svg.curve(spots, f"stroke{dashes} {colour(name)}"))
    names = [
        (name, f"stroke {colour(name)}") for name in dict.fromkeys(name for name, _, _ in lines)
    ]
    dashed = (
        [("dev pairs", "stroke dashed c0")] if any(which == "dev" for _, which, _ in lines) else []
    )
    key_to_lines, height = svg.legend([*names, *dashed], 52, 246)
    rows = [
        (name, "dev" if which == "dev" else "train", f"{x:g}", number(y, 4))
        for name, which, points in lines
        for x, y in points
    ]
    return Figure(
        title,
        caption,
        svg.drawing(title, height, [*parts, *key_to_lines]),
        ("round", "pairs", "step", key),
        rows,
    )


def _known(curve: Sequence[Row], key: str) -> list[Point]:
    return [
        (point["step"], point[key])
        for point in curve
        if point["step"] is not None and point[key] is not None
    ]


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """Every n-th point and the last: more than a screen has pixels only weigh."""
    every = -(-len(points) // MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def funnel(pairs: Row) -> Figure | None:
    """One bar for each count: what went in, what each filter dropped, what remained."""
    bars = _counts(pairs)
    if not bars:
        return None
    parts: list[str] = []
    left, longest = svg.beside(name for name, _, _ in bars), 1
    y = -STEP / 2
    for name, value, kind in bars:
        y += STEP
        if name.endswith(" in"):  # samples and prompts are counted on scales of their own
            longest, y = value or 1, y + (10 if parts else 0)
        width = (WIDTH - left - 64) * min(value / longest, 1)
        parts += [
            svg.words(
                (left - 8, y + 4), svg.short(name), "name" if kind == "flow" else "tick", "end"
            )
        ]
        parts += [
            svg.bar((left, y - 6), max(width, 1), 12, kind),
            svg.words((left + 8 + width, y + 4), count(value), "value"),
        ]
    title = f"Pairs of round {pairs['round']}"
    caption = "From samples to pairs, then from prompts to pairs; what was dropped is orange."
    rows = [(name, count(value)) for name, value, _ in bars]
    return Figure(title, caption, svg.drawing(title, y + STEP / 2, parts), ("", "count"), rows)


def _counts(pairs: Row) -> list[tuple[str, int, str]]:
    """Every count of funnel.json in its order; the reasons of what was dropped stand under their own names."""
    found: list[tuple[str, int, str]] = []
    for key, value in pairs.items():
        if isinstance(value, dict) and key.startswith("dropped"):
            found += [(name, n, "loss") for name, n in value.items()]
        elif type(value) is int and key != "round":
            found.append((key.replace("_", " "), value, "flow"))
    return found


def cost(report: Row) -> Figure | None:
    stages = [row for row in report["cost"] if row["seconds"]]
    if not stages:
        return None
    longest, total = max(row["seconds"] for row in stages), sum(row["seconds"] for row in stages)
    parts: list[str] = []
    for index, row in enumerate(stages):
        y, width = ROW * index + ROW / 2, (WIDTH - 92 - 154) * row["seconds"] / longest
        text = f"{seconds(row['seconds'])}, {share(row['seconds'] / total)}"
        parts += [
            svg.words((82, y + 4), row["stage"], "name", "end"),
            svg.bar((92, y - 8), max(width, 1), 16, "flow"),
        ]
        parts += [svg.words((100 + width, y + 4), text, "value")]
    sheet = origins.cost(report)
    rows = [[cell.text for cell in row] for row in sheet.rows]
    return Figure(
        "Time by stage",
        sheet.note,
        svg.drawing("Time by stage", ROW * len(stages), parts),
        sheet.columns,
        rows,
    )
