"""The rows that a stage leaves out, each with its reason: dropped.parquet, funnel.json, one error.

For every stage rows in = rows out + rows dropped.
"""

from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import DROPPED_FILE, FUNNEL_FILE, write_json, write_table
from pipeline.errors import UserError

KeptAndDropped = tuple[pl.DataFrame, pl.DataFrame]  # the second has a log's columns, or more
BAD_ROW = "bad row"


class DropLog:
    """`keys` are the columns that name a row, such as its number or prompt."""

    def __init__(self, rows_in: int = 0, **keys: Any):
        self.rows_in = rows_in
        self.schema = {**keys, "reason": pl.String, "detail": pl.String}
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pl.DataFrame] = []

    def drop(self, reason: str, detail: str, **keys: Any) -> None:
        self._rows.append({**keys, "reason": reason, "detail": detail})

    def record(self, rows: KeptAndDropped) -> pl.DataFrame:
        """Keep the first table, drop the second."""
        kept, dropped = rows
        self._tables += [pl.DataFrame(self._rows, schema=self.schema), dropped.select(*self.schema)]
        self._rows.clear()
        return kept

    def table(self) -> pl.DataFrame:
        return pl.concat([*self._tables, pl.DataFrame(self._rows, schema=self.schema)])

    def count_reasons(self) -> dict[str, int]:
        return count_reasons(self.table())

    def describe(self) -> str:
        return describe_reasons(self.count_reasons())

    def publish(
        self, out: Path, rows_out: Any, order: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """Write the rows and the counts. `rows_out`: a number, or one for each part."""
        table = self.table()
        write_table(out / DROPPED_FILE, table.sort(order, maintain_order=True) if order else table)
        funnel = {"in": self.rows_in, "out": rows_out, "dropped": count_reasons(table), **more}
        write_json(out / FUNNEL_FILE, funnel)
        return funnel

    def explain_empty(self, rows: str, out: Path, remedy: str = "") -> UserError:
        """The error where no row is left. `rows`: the stage, and how many of what came in."""
        return UserError(
            f"{rows} none is left ({self.describe()}).\n"
            f"  Each one's reason is in {out / DROPPED_FILE}. {remedy}".rstrip()
        )


def count_reasons(dropped: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(dropped["reason"].value_counts().rows()))


def describe_reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "no row dropped"
