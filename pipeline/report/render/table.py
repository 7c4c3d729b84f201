"""What a table of the report is: rows of text, for the page and for the model card alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.formatting import UNKNOWN, Row, interval, signed

FIGURE = re.compile(r"[<+−]? ?\d[\d,.]*(e[+-]?\d+)?(?![\w-])").match
UNMARKED = {"mean": None, "low": None, "high": None, "n": 0, "failed": 0}


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Sheet:
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    chosen: str | None = None


def worded(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Of each column whether it holds words, which begin at its left edge; figures end at its right one."""
    columns = zip(*rows, strict=True)
    return [
        any(text != UNKNOWN and not FIGURE(text) for text in column if text) for column in columns
    ]


def anchor(title: str, kind: str = "table") -> str:
    """What a link within the page is called."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def row_of(report: Row, model: str | None, scorer: str) -> Row | None:
    """A model's difference to SFT by one scorer."""
    return next(
        (row for row in report["differences"] if (row["model"], row["scorer"]) == (model, scorer)),
        None,
    )


def gap_of(report: Row, model: str | None, scorer: str) -> Cell:
    gap = row_of(report, model, scorer)
    return Cell(UNKNOWN) if gap is None or gap["mean"] is None else gain(gap)


def gain(gap: Row, *more: str) -> Cell:
    tone = "up" if (gap["low"] or 0) > 0 else "down" if (gap["high"] or 0) < 0 else ""
    return Cell(signed(gap["mean"]), detail(interval(gap, signed), *more), tone)


def detail(*texts: str) -> str:
    return ", ".join(text for text in texts if text and text != UNKNOWN)
