"""How numbers are written for people: three decimals, a true minus sign, a dash for what is not known."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = "–"
NO_SPREAD = "How small a difference so many can detect is not known: every prompt's difference is the same."


def number(value: float | None, digits: int = 3) -> str:
    """Scores live on scales of their own: from ten upwards one decimal is enough."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits if abs(value) < 10 else min(digits, 1)}f}"
    return _minus("0" + text[2:] if text.startswith("-0") and float(text) == 0 else text)


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
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


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
