"""Figures of how the models came to be: training curves, pair funnel, time by stage."""

from collections.abc import Iterator, Sequence

from pipeline.progress import LOAD, START, WAIT, WORK, WRITE
from pipeline.report.formatting import (
    ReportRow,
    fit_scale,
    format_count,
    format_duration,
    format_number,
    format_share,
)
from pipeline.report.render import svg
from pipeline.report.render.figures.models import draw_histogram
from pipeline.report.render.svg import ROW_HEIGHT, WIDTH, Figure, SvgPoint, colour_class
from pipeline.report.render.tables import origins

MAX_POINTS = 300
BAR_STEP = 24
PHASE_COLOURS = {START: "c0", LOAD: "c2", WORK: "flow", WRITE: "loss", WAIT: "tie"}
CURVES = (
    (
        "loss",
        "Training loss",
        "On each batch of each round.",
    ),
    (
        "margin",
        "Reward margin",
        "Chosen above rejected, in rewards. It can grow while the answers get worse:"
        " trust the score.",
    ),
)


STRENGTHS = {"margin": "Margins", "p_chosen": "Probabilities", "weight": "Weights"}


def draw_process(report: ReportRow) -> list[Figure]:
    funnels = [draw_funnel(pairs) for pairs in report["funnel"]["pairs"]]
    curves = [draw_curves(report, key, title, caption) for key, title, caption in CURVES]
    figures = [*curves, *funnels, draw_cost(report)]
    strengths = [figure for pairs in report["funnel"]["pairs"] for figure in draw_strength(pairs)]
    return [*(figure for figure in figures if figure is not None), *strengths]


def draw_strength(pairs: ReportRow) -> list[Figure]:
    """How much better the chosen answers of a round's pairs are. Not known to earlier versions."""
    return [
        draw_histogram(
            f"{STRENGTHS[name]} of round {pairs['round']}",
            f"How many pairs have which {name}.",
            name,
            histogram["edges"],
            {f"round-{pairs['round']}": histogram["pairs"]},
        )
        for name, histogram in pairs.get("histograms", {}).items()
    ]


def draw_curves(report: ReportRow, key: str, title: str, caption: str) -> Figure | None:
    lines = [
        (row["round"], which, _select_points(row[which], key))
        for row in report["training"]
        for which in ("curve", "dev")
    ]
    lines = [one for one in lines if one[2]]
    if not lines:
        return None
    steps = [x for _, _, points in lines for x, _ in points]
    values = [y for _, _, points in lines for _, y in points]
    across = fit_scale([0.0, *steps], 52, WIDTH - 10, tight=True)
    up = fit_scale(values, 190, 12)
    parts = [*svg.y_axis(up, across.start, across.end), *svg.x_axis(across, 12, 190, "step")]
    for name, which, points in lines:
        spots = [(across(x), up(y)) for x, y in _thin_out(points)]
        dashes = " dashed" if which == "dev" else ""
        parts.append(svg.curve(spots, f"stroke{dashes} {colour_class(name)}"))
    names = dict.fromkeys(name for name, _, _ in lines)
    strokes = [(name, f"stroke {colour_class(name)}") for name in names]
    if any(which == "dev" for _, which, _ in lines):
        strokes.append(("dev pairs", "stroke dashed c0"))
    legend, height = svg.legend(strokes, 52, 246)
    rows = [
        (name, "dev" if which == "dev" else "train", f"{x:g}", format_number(y, 4))
        for name, which, points in lines
        for x, y in points
    ]
    drawing = svg.render(title, height, [*parts, *legend])
    return Figure(title, caption, drawing, ("round", "pairs", "step", key), rows)


def _select_points(curve: Sequence[ReportRow], key: str) -> list[SvgPoint]:
    return [
        (point["step"], point[key])
        for point in curve
        if point["step"] is not None and point[key] is not None
    ]


def _thin_out(points: Sequence[SvgPoint]) -> Sequence[SvgPoint]:
    """Every n-th point and the last: more points than pixels only make the file larger."""
    every = -(-len(points) // MAX_POINTS)
    return [*points[:-1:every], points[-1]]


def draw_funnel(pairs: ReportRow) -> Figure | None:
    """One bar for each count: what went in, what each filter dropped, what remained."""
    bars = _list_counts(pairs)
    if not bars:
        return None
    parts: list[str] = []
    left, longest = svg.name_column_width(name for name, _, _ in bars), 1
    y = -BAR_STEP / 2
    for name, value, kind in bars:
        y += BAR_STEP
        if name.endswith(" in"):  # samples and prompts each have their own scale
            longest, y = value or 1, y + (10 if parts else 0)
        width = (WIDTH - left - 64) * min(value / longest, 1)
        weight = "name" if kind == "flow" else "tick"
        parts += [
            svg.label((left - 8, y + 4), svg.shorten(name), weight, "end"),
            svg.bar((left, y - 6), max(width, 1), 12, kind),
            svg.label((left + 8 + width, y + 4), format_count(value), "value"),
        ]
    title = f"Pairs of round {pairs['round']}"
    caption = "From samples to pairs, then from prompts to pairs; what was dropped is orange."
    rows = [(name, format_count(value)) for name, value, _ in bars]
    return Figure(title, caption, svg.render(title, y + BAR_STEP / 2, parts), ("", "count"), rows)


def _list_counts(pairs: ReportRow) -> list[tuple[str, int, str]]:
    """Every count of funnel.json in its order; each reason for dropping has its own."""
    counts: list[tuple[str, int, str]] = []
    for key, value in pairs.items():
        if isinstance(value, dict) and key.startswith("dropped"):
            counts += [(reason, n, "loss") for reason, n in value.items()]
        elif type(value) is int and key != "round":
            counts.append((key.replace("_", " "), value, "flow"))
    return counts


def draw_cost(report: ReportRow) -> Figure | None:
    stages = [row for row in report["cost"] if row["seconds"]]
    if not stages:
        return None
    longest, total = max(row["seconds"] for row in stages), sum(row["seconds"] for row in stages)
    parts: list[str] = []
    for index, row in enumerate(stages):
        y = ROW_HEIGHT * index + ROW_HEIGHT / 2
        width = (WIDTH - 92 - 154) * row["seconds"] / longest
        text = f"{format_duration(row['seconds'])}, {format_share(row['seconds'] / total)}"
        parts += [
            svg.label((82, y + 4), row["stage"], "name", "end"),
            *_draw_phases(row["phases"], (92, y - 8), max(width, 1)),
            svg.label((100 + width, y + 4), text, "value"),
        ]
    table = origins.build_cost(report)
    rows = [[cell.text for cell in row] for row in table.rows]
    title = "Time by stage"
    swatches = [(phase, f"swatch {kind}") for phase, kind in PHASE_COLOURS.items()]
    legend, height = svg.legend(swatches, 4, ROW_HEIGHT * len(stages) + 16)
    drawing = svg.render(title, height, [*parts, *legend])
    return Figure(title, table.note, drawing, table.columns, rows)


def _draw_phases(phases: ReportRow | None, at: SvgPoint, width: float) -> Iterator[str]:
    """A bar of this width, in parts as the phases are to each other."""
    if not phases or not sum(phases.values()):
        yield svg.bar(at, width, 16, "flow")
        return
    x, y = at
    for phase, kind in PHASE_COLOURS.items():
        share = width * phases[phase] / sum(phases.values())
        if share:
            yield svg.bar((x, y), share, 16, kind)
        x += share
