"""What a table of the report is: rows of text, for the page and for the model card alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.formatting import UNKNOWN, ReportRow, format_interval, format_signed

MATCH_FIGURE = re.compile(r"[<+−±]? ?\d[\d,.]*(e[+-]?\d+)?(?![\w-])").match
NO_METRIC = {"mean": None, "low": None, "high": None, "n": 0, "failed": 0}


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ReportTable:
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    chosen: str | None = None

    @property
    def text_columns(self) -> list[bool]:
        return find_text_columns([[cell.text for cell in row] for row in self.rows])


def find_text_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold text, which is aligned left; figures are aligned right."""
    columns = zip(*rows, strict=True)
    return [
        any(text != UNKNOWN and not MATCH_FIGURE(text) for text in column if text)
        for column in columns
    ]


def anchor_id(title: str, kind: str = "table") -> str:
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def find_difference(report: ReportRow, model: str | None, scorer: str) -> ReportRow | None:
    """A model's difference to SFT by one scorer."""
    key = model, scorer
    return next(
        (row for row in report["differences"] if (row["model"], row["scorer"]) == key), None
    )


def difference_cell(report: ReportRow, model: str | None, scorer: str) -> Cell:
    gap = find_difference(report, model, scorer)
    return Cell(UNKNOWN) if gap is None or gap["mean"] is None else gain_cell(gap)


def gain_cell(gap: ReportRow, *more: str) -> Cell:
    tone = "up" if (gap["low"] or 0) > 0 else "down" if (gap["high"] or 0) < 0 else ""
    details = join_details(format_interval(gap, format_signed), *more)
    return Cell(format_signed(gap["mean"]), details, tone)


def join_details(*texts: str) -> str:
    return ", ".join(text for text in texts if text and text != UNKNOWN)
