"""Figures of what the models do: score and length, the score's kinds, what it cost in KL; from report.json alone."""

from itertools import pairwise

from pipeline.report import formatting
from pipeline.report.formatting import Row, Scale, count, interval, number, signed
from pipeline.report.render import svg
from pipeline.report.render.svg import ROW, WIDTH, Figure, colour

RIGHT = WIDTH - 66


def of_models(report: Row) -> list[Figure]:
    made = [scores(report), *spreads(report), kinds(report), reward_and_kl(report)]
    return [figure for figure in made if figure is not None]


def scores(report: Row) -> Figure | None:
    scorer = report["exam"]["scorer"]
    marked = [
        (m["name"], m["metrics"][scorer])
        for m in report["models"]
        if m["metrics"].get(scorer, {}).get("n")
    ]
    if not marked:
        return None
    left = svg.beside(name for name, _ in marked)
    on = formatting.scale([end for _, mark in marked for end in _ends(mark)], left, RIGHT)
    bottom = ROW * len(marked) + 8
    parts = svg.x_axis(on, 4, bottom)
    for index, (name, mark) in enumerate(marked):
        parts += _mean_and_interval(on, ROW * index + ROW / 2 + 4, name, mark)
    drawing = svg.drawing("Score", bottom + 24, parts)
    rows = [(name, number(mark["mean"]), interval(mark), count(mark["n"])) for name, mark in marked]
    caption = f"The mean of {scorer} on each model's answers, with its interval."
    return Figure("Score", caption, drawing, ("model", "mean", "interval", "prompts"), rows)


def _mean_and_interval(on: Scale, y: float, name: str, mark: Row) -> list[str]:
    low, high = _ends(mark)
    return [
        svg.words((on.start - 10, y + 4), svg.short(name), "name", "end"),
        svg.line((on(low), y), (on(high), y), f"whisker {colour(name)}"),
        svg.dot((on(mark["mean"]), y), colour(name)),
        svg.words((WIDTH - 4, y + 4), number(mark["mean"]), "value", "end"),
    ]


SPREADS = {"score": "Scores before and after", "tokens": "Lengths before and after"}
NAMES = {"score": "mean score on a prompt", "tokens": "tokens per answer"}


def spreads(report: Row) -> list[Figure]:
    return [_spread(each) for each in report["distributions"]]


def _spread(each: Row) -> Figure:
    """Bars of both models beside each other in every bin."""
    edges, title = each["edges"], SPREADS[each["what"]]
    across = formatting.scale(edges, 44, WIDTH - 20, tight=True)
    most = max(n for counts in each["prompts"].values() for n in counts)
    up = formatting.scale([0, most], 170, 12)
    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 170, 170, NAMES[each["what"]]),
    ]
    wide = (across(edges[1]) - across(edges[0]) - 3) / len(each["prompts"])
    for place, (name, counts) in enumerate(each["prompts"].items()):
        for edge, n in zip(edges, counts, strict=False):
            at = across(edge) + 1.5 + place * wide, up(n)
            parts += [svg.bar(at, wide - 1, up.start - up(n), colour(name))] if n else []
    key, height = svg.legend(
        [(name, f"swatch {colour(name)}") for name in each["prompts"]], 44, 224
    )
    texts = svg.tick_text(edges)
    rows = [
        (f"{low} to {high}", *(count(counts[i]) for counts in each["prompts"].values()))
        for i, (low, high) in enumerate(pairwise(texts))
    ]
    drawing = svg.drawing(title, height, [*parts, *key])
    return Figure(
        title,
        f"How many prompts have which {NAMES[each['what']]}.",
        drawing,
        ("", *each["prompts"]),
        rows,
    )


def kinds(report: Row) -> Figure | None:
    """What the score is made of: SFT against the chosen model, kind by kind."""
    scorer, chosen = report["exam"]["scorer"], report["exam"]["chosen"]
    metrics = {model["name"]: model["metrics"] for model in report["models"]}
    if chosen in (None, "sft") or "sft" not in metrics:
        return None
    names = [name for name in metrics["sft"] if name.startswith(f"{scorer}/")]
    means = {
        name: [metrics[model].get(name, {}).get("mean") for model in ("sft", chosen)]
        for name in names
    }
    means = {name.partition("/")[2]: both for name, both in means.items() if None not in both}
    if not means:
        return None
    left, bottom = svg.beside(means), ROW * len(means) + 8
    on = formatting.scale([mean for both in means.values() for mean in both], left, RIGHT)
    parts = svg.x_axis(on, 4, bottom)
    for index, (name, both) in enumerate(means.items()):
        parts += _dumbbell(on, ROW * index + ROW / 2 + 4, name, both, colour(chosen))
    key, height = svg.legend(
        [("sft", "swatch c0"), (chosen, f"swatch {colour(chosen)}")], left, bottom + 44
    )
    drawing = svg.drawing("Score by kind", height, [*parts, *key])
    rows = [
        (name, number(before), number(after), signed(after - before))
        for name, (before, after) in means.items()
    ]
    caption = f"Each part of {scorer}, from sft to {chosen}."
    return Figure("Score by kind", caption, drawing, ("kind", "sft", chosen, "change"), rows)


def _dumbbell(on: Scale, y: float, name: str, both: list[float], kind: str) -> list[str]:
    before, after = both
    return [
        svg.words((on.start - 10, y + 4), svg.short(name), "name", "end"),
        svg.line((on(before), y), (on(after), y), "whisker link"),
        svg.dot((on(before), y), "c0"),
        svg.dot((on(after), y), kind),
        svg.words((WIDTH - 4, y + 4), signed(after - before), "value", "end"),
    ]


def reward_and_kl(report: Row) -> Figure | None:
    """What each round bought and how far it went for it. The base is no step on that way; SFT is its start."""
    scorer = report["exam"]["scorer"]
    way = [
        m for m in report["models"] if m["name"] != "base" and m["metrics"].get(scorer, {}).get("n")
    ]
    way = [m for m in way if m["kl"]["mean"] is not None or m["name"] == "sft"]
    if len(way) < 2:
        return None
    nats = [max(m["kl"]["mean"] or 0.0, 0.0) for m in way]  # an estimate near 0 may fall below it
    marks = [m["metrics"][scorer] for m in way]
    across = formatting.scale([0.0, *nats], 52, WIDTH - 24)
    up = formatting.scale([end for mark in marks for end in _ends(mark)], 200, 12)
    spots = [(across(x), up(mark["mean"])) for x, mark in zip(nats, marks, strict=True)]
    parts = [
        *svg.y_axis(up, across.start, across.end),
        *svg.x_axis(across, 12, 200, "KL to sft, nats"),
    ]
    parts.append(svg.curve(spots, "way"))
    for index, (model, mark) in enumerate(zip(way, marks, strict=True)):
        parts += _spot(model["name"], spots, index, [up(end) for end in _ends(mark)])
    drawing = svg.drawing("Score against KL", 240, parts)
    caption = f"{scorer} against the distance from sft: a good round climbs, a bad one only moves to the right."
    rows = [
        (
            m["name"],
            number(m["kl"]["mean"]),
            interval(m["kl"]),
            number(mark["mean"]),
            interval(mark),
        )
        for m, mark in zip(way, marks, strict=True)
    ]
    return Figure(
        "Score against KL",
        caption,
        drawing,
        ("model", "KL, nats", "interval", "score", "interval"),
        rows,
    )


def _spot(name: str, spots: list[svg.Point], index: int, ends: list[float]) -> list[str]:
    """A point whose name stands inside the drawing and off the way to its neighbour on that side."""
    x, y = spots[index]
    to_left = x > WIDTH * 0.7
    neighbour = spots[index - 1] if to_left else spots[min(index + 1, len(spots) - 1)]
    at = x - 10 if to_left else x + 10, y - 10 if neighbour[1] > y else y + 18
    return [
        svg.line((x, ends[0]), (x, ends[1]), f"whisker {colour(name)}"),
        svg.dot((x, y), colour(name)),
        svg.words(at, name, "name", "end" if to_left else "start"),
    ]


def _ends(mark: Row) -> tuple[float, float]:
    """An interval, or the mean itself where one prompt gives none."""
    return (mark["mean"], mark["mean"]) if mark["low"] is None else (mark["low"], mark["high"])
