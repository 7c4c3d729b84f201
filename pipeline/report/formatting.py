"""How numbers are written: three decimals, a true minus sign, a dash for what is not known."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ReportRow = Mapping[str, Any]

UNKNOWN = "–"
BADGES = {"yes": "Better", "no": "Not better", "unclear": "Unclear"}  # of a verdict
ROUNDING_ERROR = 1e-9  # sums of the same scores in another order differ by less
NO_SPREAD = (
    "How small a difference this many prompts can detect is not known: "
    "every prompt's difference is the same."
)


def format_number(value: float | None, digits: int = 3) -> str:
    """From 10 upwards one decimal is enough, whatever the scale; a small score is never zero."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits if abs(value) < 10 else min(digits, 1)}f}"
    if float(text) == 0 and digits >= 3 and abs(value) > ROUNDING_ERROR:
        text = f"{value:.2g}"
    text = "0" + text[2:] if text.startswith("-0") and float(text) == 0 else text
    return f"−{text[1:]}" if text.startswith("-") else text


def format_signed(value: float | None, digits: int = 3) -> str:
    text = format_number(value, digits)
    return f"+{text}" if value is not None and float(text.replace("−", "-")) > 0 else text


def format_share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.1f} %".replace("-", "−")


def format_count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def format_duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def measure_reach(interval: ReportRow) -> float:
    """Half the width of an interval; 0 where there is none."""
    return ((interval["high"] or 0.0) - (interval["low"] or 0.0)) / 2


def explain_spread(gap: ReportRow) -> str:
    """Which of the two intervals is wider, and what would narrow it."""
    seeds, prompts = (measure_reach(gap["between"][name]) for name in ("seeds", "prompts"))
    other = "prompts" if gap["wider"] == "seeds" else "seeds"
    return (
        f"Between {gap['between']['seeds']['n']} seeds ±{format_number(seeds)}, between prompts"
        f" ±{format_number(prompts)}: more {gap['wider']} would narrow this more than more {other}."
    )


def format_p_value(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def format_interval(estimate: Mapping[str, Any], write: Any = format_number) -> str:
    """`0.735 to 0.778`, or a dash where there is none."""
    if estimate["low"] is None:
        return UNKNOWN
    return f"{write(estimate['low'])} to {write(estimate['high'])}"


def format_level(level: float) -> str:
    return f"{100 * level:g} % interval"


@dataclass(frozen=True)
class AxisScale:
    """Maps values from low to high onto pixels from start to end; its ticks are round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def fit_scale(
    values: Iterable[float], start: float, end: float, tight: bool = False, intervals: int = 4
) -> AxisScale:
    """From tick to tick around the values; `tight` ends at the values themselves."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    size = max(abs(low), abs(high))
    if high - low <= max(size * 1e-6, 1e-9):  # practically one value: leave space on both sides
        space = size * 0.05 if size > 1e-6 else 0.5
        low, high = low - space, high + space
    step = _round_up_step((high - low) / intervals)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    if tight:
        inside = tuple(tick for tick in ticks if low <= tick <= high)
        return AxisScale(low, high, inside, start, end)
    return AxisScale(ticks[0], ticks[-1], ticks, start, end)


def _round_up_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * (1 - 1e-9))
