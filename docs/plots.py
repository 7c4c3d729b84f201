"""Draw the figures of docs/understand and fill the tables of its pages, from figures/*.json alone.

python docs/plots.py

A table's place in a page is between `<!-- table NAME -->` and `<!-- end -->`.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.report.formatting import (
    fit_scale,
    format_interval,
    format_number,
    format_share,
    format_signed,
)
from pipeline.report.render import svg

PAGES = Path(__file__).parent / "understand"
PAGE_CSS = Path(svg.__file__).with_name("page.css")
FONT = "svg { font-family: sans-serif; background: #ffffff; }"
COLOURS = ("c2", "c5", "c6", "c4", "c1", "c3")
(LEFT, RIGHT) = (58, svg.WIDTH - 12)
PANEL_HEIGHT = 118
# The experiments of one SFT model, as a legend names them.
FRONTIER = {
    "beta": "β",
    "rate": "learning rate",
    "length": "length",
    "displacement": "rpo",
    "noise": "noise",
    "policy": "offline",
}
MANY = 15  # points of a line, from which on only the last is marked
MIN_KL = 0.01  # nats: an estimate of less is drawn here, since the axis is logarithmic
Row = Mapping[str, Any]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    title: str
    lines: Mapping[str, Points]


# ── the figures: each from the measured rows of its experiments ──────────────────────────────────


def draw_figures(measured: Mapping[str, Row]) -> dict[str, str]:
    """Every figure that the given experiments allow, by the name of its file."""
    drawn: dict[str, str] = {}
    for name, (experiment, panels) in CURVES.items():
        if experiment in measured:
            points = measured[experiment]["points"]
            drawn[name] = draw_panels(f"{name} by step", "step", list_panels(points, panels))
    if compared := select_compared(measured):
        drawn["frontier"] = draw_frontier(compared)
    for name, (experiment, draw) in OTHERS.items():
        if experiment in measured:
            drawn[name] = draw(measured[experiment])
    return drawn


# A figure's experiment, and its panels: their titles, and what of each evaluation they show.
CURVES = {
    "beta": (
        "beta",
        {
            "Δ of held-out pairs, nats": "delta",
            "KL from SFT, nats per answer": "kl",
            "score of new answers": "score",
        },
    ),
    "rate": (
        "rate",
        {
            "Δ of held-out pairs, nats": "delta",
            "score of new answers": "score",
            "KL from SFT, nats per answer": "kl",
        },
    ),
    "length": (
        "length",
        {"tokens per new answer": "tokens", "score of new answers, by the rule": "score"},
    ),
    "displacement": (
        "displacement",
        {
            "u: log-ratio of chosen answers, nats": "chosen",
            "d: log-ratio of rejected answers, nats": "rejected",
        },
    ),
    "noise": (
        "noise",
        {"loss on training pairs": "losses", "score of new answers": "score"},
    ),
    "policy": (
        "policy",
        {"accuracy on held-out pairs": "accuracy", "score of new answers": "score"},
    ),
    "epochs": (
        "rate",
        {"accuracy on held-out pairs": "accuracy", "loss on held-out pairs": "loss"},
    ),
}


def list_panels(points: Iterable[Row], panels: Mapping[str, str]) -> list[Panel]:
    rows = [*points]
    return [
        Panel(title, {row["name"]: _select_curve(row, key) for row in rows})
        for title, key in panels.items()
    ]


def _select_curve(row: Row, key: str) -> Points:
    if key == "losses":
        return _smooth([(step, loss) for step, loss in row["losses"]])
    return [(one["step"], one[key]) for one in row["evaluations"]]


def _smooth(points: Points, width: int = 5) -> Points:
    """The mean of the last few batches, as one batch is noise."""
    means = []
    for at in range(width, len(points) + 1):
        values = [value for _, value in points[at - width : at]]
        means.append((points[at - 1][0], sum(values) / width))
    return means


def draw_overoptimisation(figures: Row) -> str:
    rounds = [figures["sft"], *(point["final"] for point in figures["points"])]
    reward = [(at, one["reward"]["mean"]) for at, one in enumerate(rounds)]
    gold = [(at, one["score"]["mean"]) for at, one in enumerate(rounds)]
    panels = [
        Panel("reward, by the model that made the pairs", {"reward": reward}),
        Panel("gold rule, which made none", {"gold": gold}),
    ]
    return draw_panels("Gold and proxy by round", "round (0: SFT)", panels)


def draw_ties(figures: Row) -> str:
    shares = [(row["n"], row["share"]) for row in figures["ties"]]
    panel = Panel("share of prompts without a pair", {"all samples score alike": shares})
    return draw_panels("Ties by samples", "samples per prompt", [panel])


def draw_criteria(figures: Row) -> str:
    return draw_rows("Criteria: difference from SFT", _list_criteria(figures))


def _list_criteria(figures: Row) -> dict[str, dict[str, float]]:
    """What each criterion of the rule has gained or lost against SFT."""
    before = figures["sft"]["criteria"]
    finals = {point["name"]: point["final"]["criteria"] for point in figures["points"]}
    return {
        name: {kind: value - before[kind] for kind, value in criteria.items()}
        for name, criteria in finals.items()
    }


def draw_openings(figures: Row) -> str:
    shares = {"share": _list_openings(figures)}
    return draw_rows("Share of answers with the commonest opening", shares)


def _list_openings(figures: Row) -> dict[str, float]:
    rows = [("sft", figures["sft"]), *((one["name"], one["final"]) for one in figures["points"])]
    return {name: row["opening"]["share"] for name, row in rows}


OTHERS: Mapping[str, tuple[str, Callable[[Row], str]]] = {
    "overoptimise": ("overoptimise", draw_overoptimisation),
    "ties": ("ties", draw_ties),
    "criteria": ("length", draw_criteria),
    "openings": ("rate", draw_openings),
}


def list_written_numbers(name: str, measured: Mapping[str, Row]) -> Iterator[str]:
    """Numbers that a figure shows and no table has, as its page writes them."""
    if name == "frontier":
        for _, point, kl, score in _list_spots(select_compared(measured)):
            yield f"{point} {format_number(kl, 2)} {format_number(score)}"
    if name == "ties":
        yield from (f"{format_share(row['share'])} {row['n']}" for row in measured["ties"]["ties"])
    if name == "openings":
        yield from (format_share(share) for share in _list_openings(measured["rate"]).values())
    if name == "criteria":
        for changes in _list_criteria(measured["length"]).values():
            yield from (format_signed(change) for change in changes.values())
    if name in CURVES:
        (experiment, panels) = CURVES[name]
        for panel in list_panels(measured[experiment]["points"], panels):
            for line in panel.lines.values():
                yield from (f"{x} {format_number(y, 2)}" for x, y in line)


# ── drawing ──────────────────────────────────────────────────────────────────────────────────────


def draw_panels(title: str, x_title: str, panels: Sequence[Panel]) -> str:
    """Panels one below the other, with one axis for x and one legend."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = dict(zip(names, COLOURS, strict=False))
    steps = [x for panel in panels for line in panel.lines.values() for x, _ in line]
    across = fit_scale([0.0, *steps] if x_title == "step" else steps, LEFT, RIGHT, tight=True)
    (parts, top) = (list[str](), 0)
    for panel in panels:
        (start, end) = (top + 26, top + 26 + PANEL_HEIGHT)
        values = [y for line in panel.lines.values() for _, y in line]
        noise = max(values) / 100  # an estimate this little below zero adds no tick there
        values = [0.0 if -noise < value < 0 else value for value in values]
        up = fit_scale(values, end, start, intervals=3)
        is_last = panel is panels[-1]
        texts = () if is_last else [""] * len(across.ticks)
        parts += [
            svg.label((0, top + 14), panel.title, "name"),
            *svg.y_axis(up, LEFT, RIGHT),
            *svg.x_axis(across, start, end, x_title if is_last else "", texts),
        ]
        for name, line in panel.lines.items():
            spots = [(across(x), up(y)) for x, y in line]
            marked = spots if len(spots) < MANY else spots[-1:]
            parts.append(svg.curve(spots, f"stroke {colours[name]}"))
            parts += [svg.dot(spot, colours[name], 3) for spot in marked]
        top = end + 12
    (legend, height) = (list[str](), top + 30.0)
    if any(len(panel.lines) > 1 for panel in panels):  # else the title names the line
        strokes = [(name, f"stroke {colours[name]}") for name in names]
        (legend, height) = svg.legend(strokes, LEFT, top + 46)
    return make_standalone(svg.render(title, height, [*parts, *legend]))


def select_compared(measured: Mapping[str, Row]) -> dict[str, Row]:
    """The experiments from one SFT model: on another machine it is another one."""
    found = {name: measured[name] for name in FRONTIER if name in measured}
    first = next(iter(found.values()), {"sft": None})
    return {name: figures for name, figures in found.items() if figures["sft"] == first["sft"]}


def draw_frontier(measured: Mapping[str, Row]) -> str:
    """All trained models by KL and score; a line through those that no other dominates."""
    spots = [*_list_spots(measured)]
    sft = next(iter(measured.values()))["sft"]["score"]["mean"]
    across = fit_scale([math.log10(kl) for _, _, kl, _ in spots], LEFT, RIGHT - 8)
    up = fit_scale([sft, *(score for *_, score in spots)], 250, 20)
    texts = [f"{10**tick:.3g}" for tick in across.ticks]
    best = [(across(math.log10(kl)), up(score)) for kl, score in select_frontier(spots)]
    parts = [
        *svg.y_axis(up, LEFT, RIGHT),
        *svg.x_axis(across, 20, 250, "KL from SFT, nats per answer (logarithmic)", texts),
        svg.line((LEFT, up(sft)), (RIGHT, up(sft)), "half"),
        svg.label((RIGHT, up(sft) - 5), "SFT", "tick halo", "end"),
        svg.curve(best, "way"),
    ]
    colours = dict(zip(measured, COLOURS, strict=False))
    for experiment, _, kl, score in spots:
        parts.append(svg.dot((across(math.log10(kl)), up(score)), colours[experiment]))
    for _, name, kl, score in spots:
        if (kl, score) in select_frontier(spots):
            at = (across(math.log10(kl)), max(up(score) - 9, 12))
            parts.append(svg.label(at, name, "tick halo", "end" if at[0] > 300 else "start"))
    swatches = [(FRONTIER[name], f"swatch {colour}") for name, colour in colours.items()]
    (legend, height) = svg.legend(swatches, LEFT, 310)
    return make_standalone(svg.render("Score against KL", height, [*parts, *legend]))


def _list_spots(measured: Mapping[str, Row]) -> Iterator[tuple[str, str, float, float]]:
    """Experiment, point, KL and score. The base training is in several, and drawn once."""
    known = set()
    for experiment, figures in measured.items():
        for point in figures["points"]:
            (kl, score) = (point["final"]["kl"], point["final"]["score"]["mean"])
            if (kl, score) not in known:
                known.add((kl, score))
                yield experiment, point["name"], max(kl, MIN_KL), score


def select_frontier(spots: Iterable[tuple[str, str, float, float]]) -> list[tuple[float, float]]:
    """KL and score of the models than which no other scores more with less KL."""
    frontier: list[tuple[float, float]] = []
    for kl, score in sorted((kl, score) for *_, kl, score in spots):
        if not frontier or score > frontier[-1][1]:
            frontier.append((kl, score))
    return frontier


def draw_rows(title: str, series: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each name, with a dot for each series."""
    names = list(next(iter(series.values())))
    values = [value for row in series.values() for value in row.values()]
    left = svg.name_column_width(names)
    across = fit_scale([0.0, *values], left, RIGHT)
    bottom = svg.ROW_HEIGHT * len(names) + 8
    parts = svg.x_axis(across, 4, bottom)
    parts.append(svg.line((across(0), 4), (across(0), bottom), "half"))
    for at, name in enumerate(names):
        y = svg.ROW_HEIGHT * (at + 0.5) + 4
        parts.append(svg.label((left - 10, y + 4), svg.shorten(name), "name", "end"))
        for row, colour in zip(series.values(), COLOURS, strict=False):
            parts.append(svg.dot((across(row[name]), y), colour))
    height: float = bottom + 24
    if len(series) > 1:
        swatches = [
            (name, f"swatch {colour}") for name, colour in zip(series, COLOURS, strict=False)
        ]
        (legend, height) = svg.legend(swatches, left, bottom + 44)
        parts += legend
    return make_standalone(svg.render(title, height, parts))


def make_standalone(drawing: str) -> str:
    """A drawing of the report as a file: with the rules of its page, in light colours.

    A rule with the colour that a class gives becomes one for each class, since not every program
    that shows SVG knows CSS variables.
    """
    (css, _, _) = PAGE_CSS.read_text().partition("@media (max-width")  # then small screens
    colours = dict(re.findall(r"--(\w+): (#\w+);", css.partition("@media")[0]))
    rules = []
    for selector, body in re.findall(r"(svg [^{}\n]+?) \{([^{}]*)\}", css):
        if not {*re.findall(r"\w+", selector)} & {*re.findall(r"\w+", drawing)} - {"svg"}:
            continue
        body = re.sub(r"var\(--(\w+)\)", lambda use: colours.get(use[1], use[0]), body)
        if "var(--k)" not in body:
            rules.append(f"{selector} {{{body}}}")
            continue
        for name in (name for name in COLOURS if re.search(rf"\b{name}\b", drawing)):
            rules.append(f"{selector}.{name} {{{body.replace('var(--k)', colours[name])}}}")
    (head, _, body) = drawing.partition("\n")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f"{head}\n<style>{FONT} {' '.join(rules)}</style>\n{body}\n"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────

Column = Callable[[Row], str]
PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def show_last(figure: str, digits: int) -> Column:
    """A figure of the last evaluation during training, which SFT has not."""

    def write(point: Row) -> str:
        evaluations = point.get("evaluations")
        return format_number(evaluations[-1][figure], digits) if evaluations else ""

    return write


def show_gain(point: Row) -> str:
    gain = point["final"]["gain"]
    return f"{format_signed(gain['mean'])} ({format_interval(gain)})" if gain else ""


def show_pairs(figure: str, digits: int) -> Column:
    return lambda point: format_number(point["pairs"][figure], digits) if "pairs" in point else ""


def show_last_loss(point: Row) -> str:
    return format_number(_smooth(point["losses"])[-1][1]) if "losses" in point else ""


HEAD: Mapping[str, Column] = {
    "": lambda point: point["name"],
    "score": lambda point: format_number(point["final"]["score"]["mean"]),
    "difference from SFT, 95 %": show_gain,
    "KL": lambda point: format_number(point["final"]["kl"], 2),
    "tokens": lambda point: format_number(point["final"]["tokens"], 1),
}
# Further columns of an experiment's table.
MORE: Mapping[str, Mapping[str, Column]] = {
    "beta": {"Δ, nats": show_last("delta", 1), "loss": show_last("loss", 3)},
    "rate": {
        "Δ, nats": show_last("delta", 1),
        "accuracy": show_last("accuracy", 2),
        "loss": show_last("loss", 3),
    },
    "length": {"pairs with the longer side chosen": show_pairs("chosen_longer", 2)},
    "displacement": {
        "u": show_last("chosen", 1),
        "d": show_last("rejected", 1),
        "lost, nats per token": show_last("drop", 2),
    },
    "noise": {"loss of the last batches": show_last_loss, "Δ, nats": show_last("delta", 1)},
    "policy": {
        "pairs": show_pairs("train", 0),
        "accuracy": show_last("accuracy", 2),
        "Δ, nats": show_last("delta", 1),
    },
    "overoptimise": {"reward": lambda point: format_number(point["final"]["reward"]["mean"], 2)},
}


def render_table(name: str, figures: Row) -> str:
    columns = {**HEAD, **MORE[name]}
    points = [{"name": "sft", "final": figures["sft"]}, *figures["points"]]
    rows = [[write(point) for write in columns.values()] for point in points]
    return "".join(map(_render_line, [[*columns], ["---"] * len(columns), *rows]))


def _render_line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells) + "\n"


def fill_tables(page: str, measured: Mapping[str, Row]) -> str:
    def replace(place: re.Match[str]) -> str:
        (begin, name, end) = place.groups()
        return f"{begin}{render_table(name, measured[name])}{end}" if name in measured else place[0]

    return PLACE.sub(replace, page)


def read_measured(folder: Path) -> dict[str, Row]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def main() -> None:
    measured = read_measured(PAGES / "figures")
    for name, drawing in draw_figures(measured).items():
        (PAGES / "figures" / f"{name}.svg").write_text(drawing)
    for page in PAGES.glob("*.md"):
        page.write_text(fill_tables(page.read_text(), measured))


if __name__ == "__main__":
    main()
