"""How numbers are written for people: three decimals, a true minus sign, a dash for what is not known."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

UNKNOWN = "–"
NOTHING = 1e-9  # sums of the same scores in another order differ by less
NO_SPREAD = (
    "How small a difference so many can detect is not known: every prompt's difference is the same."
)


def number(value: float | None, digits: int = 3) -> str:
    """Scores live on scales of their own: from ten upwards one decimal is enough, and a small one is no zero."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits if abs(value) < 10 else min(digits, 1)}f}"
    if float(text) == 0 and digits >= 3 and abs(value) > NOTHING:
        text = f"{value:.2g}"
    text = "0" + text[2:] if text.startswith("-0") and float(text) == 0 else text
    return f"−{text[1:]}" if text.startswith("-") else text


def signed(value: float | None, digits: int = 3) -> str:
    text = number(value, digits)
    return f"+{text}" if value is not None and float(text.replace("−", "-")) > 0 else text


def share(value: float | None) -> str:
    return UNKNOWN if value is None else _minus(f"{100 * value:.1f} %")


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 120
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def p_value(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: Mapping[str, Any], write: Any = number) -> str:
    """`0.735 to 0.778`, or a dash where there is none."""
    if estimate["low"] is None:
        return UNKNOWN
    return f"{write(estimate['low'])} to {write(estimate['high'])}"


def level_text(level: float) -> str:
    return f"{100 * level:g} % interval"


def _minus(text: str) -> str:
    return text.replace("-", "−")


@dataclass(frozen=True)
class Scale:
    """Values from low to high onto pixels from start to end, with round numbers for its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scale(
    values: Iterable[float], start: float, end: float, tight: bool = False, wanted: int = 4
) -> Scale:
    """From tick to tick around the values; `tight` ends at the values themselves."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    size = max(abs(low), abs(high))
    if high - low <= max(size * 1e-6, 1e-9):  # as good as one value: give it room on both sides
        room = size * 0.05 if size > 1e-6 else 0.5
        low, high = low - room, high + room
    step = _round_step((high - low) / wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    if tight:
        return Scale(low, high, tuple(tick for tick in ticks if low <= tick <= high), start, end)
    return Scale(ticks[0], ticks[-1], ticks, start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * (1 - 1e-9))
