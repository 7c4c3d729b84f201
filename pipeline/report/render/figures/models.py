"""Figures of what the models do: score, length, criteria and KL, from report.json alone."""

from itertools import pairwise

from pipeline.report.formatting import (
    AxisScale,
    ReportRow,
    fit_scale,
    format_count,
    format_interval,
    format_number,
    format_signed,
)
from pipeline.report.render import svg
from pipeline.report.render.svg import ROW_HEIGHT, WIDTH, Figure, SvgPoint, colour_class

DRAWING_END = WIDTH - 66
DISTRIBUTION_TITLES = {"score": "Scores before and after", "tokens": "Lengths before and after"}
AXIS_TITLES = {"score": "mean score on a prompt", "tokens": "tokens per answer"}


def draw_models(report: ReportRow) -> list[Figure]:
    figures = [
        draw_scores(report),
        *draw_distributions(report),
        draw_criteria(report),
        draw_score_and_kl(report),
    ]
    return [figure for figure in figures if figure is not None]


def draw_scores(report: ReportRow) -> Figure | None:
    scorer = report["evaluation"]["scorer"]
    scored = [
        (model["name"], model["metrics"][scorer])
        for model in report["models"]
        if model["metrics"].get(scorer, {}).get("n")
    ]
    if not scored:
        return None
    left = svg.name_column_width(name for name, _ in scored)
    ends = [end for _, metric in scored for end in _interval_ends(metric)]
    scale = fit_scale(ends, left, DRAWING_END)
    bottom = ROW_HEIGHT * len(scored) + 8
    parts = svg.x_axis(scale, 4, bottom)
    for index, (name, metric) in enumerate(scored):
        parts += _draw_mean(scale, ROW_HEIGHT * index + ROW_HEIGHT / 2 + 4, name, metric)
    drawing = svg.render("Score", bottom + 24, parts)
    rows = [
        (name, format_number(metric["mean"]), format_interval(metric), format_count(metric["n"]))
        for name, metric in scored
    ]
    caption = f"The mean of {scorer} on each model's answers, with its interval."
    return Figure("Score", caption, drawing, ("model", "mean", "interval", "prompts"), rows)


def _draw_mean(scale: AxisScale, y: float, name: str, metric: ReportRow) -> list[str]:
    low, high = _interval_ends(metric)
    colour = colour_class(name)
    return [
        svg.label((scale.start - 10, y + 4), svg.shorten(name), "name", "end"),
        svg.line((scale(low), y), (scale(high), y), f"whisker {colour}"),
        svg.dot((scale(metric["mean"]), y), colour),
        svg.label((WIDTH - 4, y + 4), format_number(metric["mean"]), "value", "end"),
    ]


def draw_distributions(report: ReportRow) -> list[Figure]:
    return [_draw_distribution(distribution) for distribution in report["distributions"]]


def _draw_distribution(distribution: ReportRow) -> Figure:
    title, axis = DISTRIBUTION_TITLES[distribution["what"]], AXIS_TITLES[distribution["what"]]
    caption = f"How many prompts have which {axis}."
    return draw_histogram(title, caption, axis, distribution["edges"], distribution["prompts"])


def draw_histogram(
    title: str, caption: str, axis: str, edges: list[float], by_name: dict[str, list[int]]
) -> Figure:
    """In every bin a bar for each name."""
    across = fit_scale(edges, 44, WIDTH - 20, tight=True)
    most = max(n for counts in by_name.values() for n in counts)
    up = fit_scale([0, most], 170, 12)
    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 170, 170, axis),
    ]
    width = (across(edges[1]) - across(edges[0]) - 3) / len(by_name)
    for place, (name, counts) in enumerate(by_name.items()):
        for edge, n in zip(edges, counts, strict=False):
            at = across(edge) + 1.5 + place * width, up(n)
            if n:
                parts.append(svg.bar(at, width - 1, up.start - up(n), colour_class(name)))
    key, height = svg.legend([(name, f"swatch {colour_class(name)}") for name in by_name], 44, 224)
    rows = [
        (f"{low} to {high}", *(format_count(counts[i]) for counts in by_name.values()))
        for i, (low, high) in enumerate(pairwise(svg.format_ticks(edges)))
    ]
    drawing = svg.render(title, height, [*parts, *key])
    return Figure(title, caption, drawing, ("", *by_name), rows)


def draw_criteria(report: ReportRow) -> Figure | None:
    """SFT against the chosen model by each criterion of the score."""
    scorer, chosen = report["evaluation"]["scorer"], report["evaluation"]["chosen"]
    metrics = {model["name"]: model["metrics"] for model in report["models"]}
    if chosen in (None, "sft") or "sft" not in metrics:
        return None
    means = {}
    for name in metrics["sft"]:
        both = [metrics[model].get(name, {}).get("mean") for model in ("sft", chosen)]
        if name.startswith(f"{scorer}/") and None not in both:
            means[name.partition("/")[2]] = both
    if not means:
        return None
    left, bottom = svg.name_column_width(means), ROW_HEIGHT * len(means) + 8
    scale = fit_scale([mean for both in means.values() for mean in both], left, DRAWING_END)
    parts, colour = svg.x_axis(scale, 4, bottom), colour_class(chosen)
    for index, (name, both) in enumerate(means.items()):
        parts += _draw_dumbbell(scale, ROW_HEIGHT * index + ROW_HEIGHT / 2 + 4, name, both, colour)
    swatches = [("sft", "swatch c0"), (chosen, f"swatch {colour}")]
    key, height = svg.legend(swatches, left, bottom + 44)
    title = "Score by criterion"
    drawing = svg.render(title, height, [*parts, *key])
    rows = [
        (name, format_number(before), format_number(after), format_signed(after - before))
        for name, (before, after) in means.items()
    ]
    caption = f"Each criterion of {scorer}, from sft to {chosen}."
    return Figure(title, caption, drawing, ("criterion", "sft", chosen, "change"), rows)


def _draw_dumbbell(
    scale: AxisScale, y: float, name: str, both: list[float], kind: str
) -> list[str]:
    before, after = both
    return [
        svg.label((scale.start - 10, y + 4), svg.shorten(name), "name", "end"),
        svg.line((scale(before), y), (scale(after), y), "whisker link"),
        svg.dot((scale(before), y), "c0"),
        svg.dot((scale(after), y), kind),
        svg.label((WIDTH - 4, y + 4), format_signed(after - before), "value", "end"),
    ]


def draw_score_and_kl(report: ReportRow) -> Figure | None:
    """Each model's score against its KL, connected from SFT on. The base is left out."""
    scorer = report["evaluation"]["scorer"]
    path = [
        model
        for model in report["models"]
        if model["name"] != "base"
        and model["metrics"].get(scorer, {}).get("n")
        and (model["kl"]["mean"] is not None or model["name"] == "sft")
    ]
    if len(path) < 2:
        return None
    # An estimate near 0 may fall below it.
    nats = [max(model["kl"]["mean"] or 0.0, 0.0) for model in path]
    metrics = [model["metrics"][scorer] for model in path]
    across = fit_scale([0.0, *nats], 52, WIDTH - 24)
    up = fit_scale([end for metric in metrics for end in _interval_ends(metric)], 200, 12)
    spots = [(across(x), up(metric["mean"])) for x, metric in zip(nats, metrics, strict=True)]
    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 12, 200, "KL to sft, nats"),
        svg.curve(spots, "way"),
    ]
    for index, (model, metric) in enumerate(zip(path, metrics, strict=True)):
        ends = [up(end) for end in _interval_ends(metric)]
        parts += _draw_spot(model["name"], spots, index, ends)
    title = "Score against KL"
    caption = (
        f"{scorer} against the distance from sft:"
        " a good round goes up, a bad one only to the right."
    )
    rows = [
        (
            model["name"],
            format_number(model["kl"]["mean"], 2),
            format_interval(model["kl"], lambda value: format_number(value, 2)),
            format_number(metric["mean"]),
            format_interval(metric),
        )
        for model, metric in zip(path, metrics, strict=True)
    ]
    columns = ("model", "KL, nats", "interval", "score", "interval")
    return Figure(title, caption, svg.render(title, 240, parts), columns, rows)


def _draw_spot(name: str, spots: list[SvgPoint], index: int, ends: list[float]) -> list[str]:
    """A point with its name inside the drawing and off the line to the neighbour on that side."""
    x, y = spots[index]
    to_left = x > WIDTH * 0.7
    neighbour = spots[index - 1] if to_left else spots[min(index + 1, len(spots) - 1)]
    at = x - 10 if to_left else x + 10, y - 10 if neighbour[1] > y else y + 18
    return [
        svg.line((x, ends[0]), (x, ends[1]), f"whisker {colour_class(name)}"),
        svg.dot((x, y), colour_class(name)),
        svg.label(at, name, "name", "end" if to_left else "start"),
    ]


def _interval_ends(metric: ReportRow) -> tuple[float, float]:
    """An interval, or the mean itself where one prompt gives none."""
    if metric["low"] is None:
        return metric["mean"], metric["mean"]
    return metric["low"], metric["high"]
