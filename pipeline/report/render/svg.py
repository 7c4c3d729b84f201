"""The few shapes that the figures need, as strings.

Colours are classes of page.css, so that both themes work.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from pipeline.report.formatting import AxisScale

WIDTH = 440
ROW_HEIGHT = 30
COLOUR_COUNT = 6
MAX_NAME_LENGTH = 22  # characters of a name at the left of a drawing

SvgPoint = tuple[float, float]


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
        view_box = self.drawing.split('"', 2)[1]  # the first attribute
        return float(view_box.split()[-1])


def colour_class(model: str) -> str:
    """base and sft are grey; rounds go through the colours in order."""
    if model.startswith("round-"):
        return f"c{(int(model.removeprefix('round-')) - 1) % COLOUR_COUNT + 1}"
    return "c0" if model == "sft" else "cb"


def format_ticks(ticks: Sequence[float]) -> list[str]:
    """With as many decimals as distinguish the ticks."""
    for digits in range(7):
        texts = [f"{tick:,.{digits}f}" for tick in ticks]
        written = [float(text.replace(",", "")) for text in texts]
        if all(abs(value - tick) < 1e-9 for value, tick in zip(written, ticks, strict=True)):
            return [text.replace("-", "−") for text in texts]
    return [f"{tick:.1e}".replace("-", "−") for tick in ticks]


def render(title: str, height: float, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {_px(height)}" role="img" aria-label="{escape(title)}">\n'
        f"{body}\n</svg>"
    )


def line(a: SvgPoint, b: SvgPoint, kind: str) -> str:
    x1, y1, x2, y2 = (_px(value) for value in (*a, *b))
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def curve(points: Sequence[SvgPoint], kind: str) -> str:
    coordinates = " ".join(f"{_px(x)},{_px(y)}" for x, y in points)
    return f'<polyline class="{kind}" points="{coordinates}"/>'


def dot(at: SvgPoint, kind: str, radius: float = 5) -> str:
    return f'<circle class="{kind}" cx="{_px(at[0])}" cy="{_px(at[1])}" r="{_px(radius)}"/>'


def bar(at: SvgPoint, width: float, height: float, kind: str) -> str:
    x, y, wide, high = (_px(value) for value in (*at, max(width, 0), height))
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{high}" rx="2"/>'


def shaded_bar(at: SvgPoint, width: float, height: float, kind: str, shade: float) -> str:
    """A rectangle whose opacity shows a share from 0 to 1, light enough for text on it."""
    return bar(at, width, height, kind).replace("/>", f' fill-opacity="{0.08 + 0.5 * shade:.2f}"/>')


def label(at: SvgPoint, text: str, kind: str = "", anchor: str = "start") -> str:
    css = f' class="{kind}"' if kind else ""
    x, y = map(_px, at)
    return f'<text{css} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def name_column_width(names: Iterable[str]) -> float:
    """Where a drawing begins whose rows are named at its left."""
    return max(92.0, 12 + 9 * max((len(shorten(name)) for name in names), default=0))


def shorten(name: str) -> str:
    """A name that fits at the left of a drawing; the table below has it in full."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


def x_axis(
    scale: AxisScale, top: float, bottom: float, title: str = "", texts: Sequence[str] = ()
) -> list[str]:
    """Vertical grid lines with their numbers below."""
    parts = []
    for tick, text in zip(scale.ticks, texts or format_ticks(scale.ticks), strict=True):
        x = scale(tick)
        parts += [
            line((x, top), (x, bottom), "grid"),
            label((x, bottom + 16), text, "tick", "middle"),
        ]
    return [*parts, label((scale.end, bottom + 34), title, "axis", "end")] if title else parts


def y_axis(scale: AxisScale, left: float, right: float) -> list[str]:
    parts = []
    for tick, text in zip(scale.ticks, format_ticks(scale.ticks), strict=True):
        y = scale(tick)
        parts += [
            line((left, y), (right, y), "grid"),
            label((left - 8, y + 4), text, "tick", "end"),
        ]
    return parts


def legend(names: Sequence[tuple[str, str]], left: float, top: float) -> tuple[list[str], float]:
    """Names after strokes in their colours, on as many lines as needed; and the final height."""
    parts, x = [], left
    for name, kind in names:
        wide = 24 + 8 * len(name) + 16
        if x + wide > WIDTH + 16 and x > left:
            x, top = left, top + 20
        parts += [line((x, top - 4), (x + 18, top - 4), kind), label((x + 24, top), name, "tick")]
        x += wide
    return parts, top + 8


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
