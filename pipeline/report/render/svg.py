"""The few shapes that the figures need, as strings. Colours are classes of page.css, so that both themes work."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.formatting import Scale

WIDTH = 440
ROW = 30
COLOURS = 6
LONGEST = 22  # letters of a name beside a drawing

Point = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A drawing and the same numbers as a table of text."""

    title: str
    caption: str
    drawing: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def height(self) -> float:
        return float(
            self.drawing.split('"', 2)[1].split()[-1]
        )  # of the viewBox, which stands first


def colour(model: str) -> str:
    """base and sft are grey; rounds go through the colours in order."""
    if model.startswith("round-"):
        return f"c{(int(model.removeprefix('round-')) - 1) % COLOURS + 1}"
    return "c0" if model == "sft" else "cb"


def tick_text(ticks: Sequence[float]) -> list[str]:
    """As many decimals as tell the ticks apart."""
    for digits in range(7):
        texts = [f"{tick:,.{digits}f}" for tick in ticks]
        if all(
            abs(float(text.replace(",", "")) - tick) < 1e-9
            for text, tick in zip(texts, ticks, strict=True)
        ):
            return [text.replace("-", "−") for text in texts]
    return [f"{tick:.1e}".replace("-", "−") for tick in ticks]


def drawing(label: str, height: float, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>'


def line(a: Point, b: Point, kind: str) -> str:
    return f'<line class="{kind}" x1="{_n(a[0])}" y1="{_n(a[1])}" x2="{_n(b[0])}" y2="{_n(b[1])}"/>'


def curve(points: Sequence[Point], kind: str) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"/>'


def dot(at: Point, kind: str, radius: float = 5) -> str:
    return f'<circle class="{kind}" cx="{_n(at[0])}" cy="{_n(at[1])}" r="{_n(radius)}"/>'


def bar(at: Point, width: float, height: float, kind: str) -> str:
    x, y, wide, high = (_n(value) for value in (*at, max(width, 0), height))
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{high}" rx="2"/>'


def shaded(at: Point, width: float, height: float, kind: str, shade: float) -> str:
    """A rectangle whose colour says a share from 0 to 1, light enough for words on it."""
    return bar(at, width, height, kind).replace("/>", f' fill-opacity="{0.08 + 0.5 * shade:.2f}"/>')


def words(at: Point, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return (
        f'<text{named} x="{_n(at[0])}" y="{_n(at[1])}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def beside(names: Iterable[str]) -> float:
    """Where a drawing begins whose rows are named at its left."""
    return max(92.0, 12 + 9 * max((len(short(name)) for name in names), default=0))


def short(name: str) -> str:
    """A name that fits beside a drawing; the table below has all of it."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def x_axis(
    on: Scale, top: float, bottom: float, title: str = "", texts: Sequence[str] = ()
) -> list[str]:
    """Vertical grid lines with their numbers below."""
    parts = []
    for tick, text in zip(on.ticks, texts or tick_text(on.ticks), strict=True):
        parts += [
            line((on(tick), top), (on(tick), bottom), "grid"),
            words((on(tick), bottom + 16), text, "tick", "middle"),
        ]
    return [*parts, words((on.end, bottom + 34), title, "axis", "end")] if title else parts


def y_axis(on: Scale, left: float, right: float) -> list[str]:
    parts = []
    for tick, text in zip(on.ticks, tick_text(on.ticks), strict=True):
        parts += [
            line((left, on(tick)), (right, on(tick)), "grid"),
            words((left - 8, on(tick) + 4), text, "tick", "end"),
        ]
    return parts


def legend(names: Sequence[tuple[str, str]], left: float, top: float) -> tuple[list[str], float]:
    """Names behind strokes of their colours, in as many lines as they need; and the height where they end."""
    parts, x = [], left
    for name, kind in names:
        wide = 24 + 8 * len(name) + 16
        if x + wide > WIDTH + 16 and x > left:
            x, top = left, top + 20
        parts += [line((x, top - 4), (x + 18, top - 4), kind), words((x + 24, top), name, "tick")]
        x += wide
    return parts, top + 8


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
