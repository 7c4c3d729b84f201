"""Completions that a server did not give: listed in `failed.parquet`, kept out of the samples; too many end the run."""

from functools import cached_property
from typing import Any

import polars as pl

from pipeline.artifacts import find_knob, write_table
from pipeline.config import SampleRequest
from pipeline.errors import StageError, pluralize
from pipeline.sampling.shards import Shards

FAILED: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "setting": pl.String,
    "reason": pl.String,
}


class Failures:
    """Of this attempt, which are all there are: a shard that lost rows is drawn again in the next."""

    def __init__(self, cfg: SampleRequest, shards: Shards):
        self._cfg, self._shards, self._most = cfg, shards, cfg.runtime.max_failed
        self._file = shards.out / "failed.parquet"
        self._rows: list[dict[str, str]] = []
        self._file.unlink(missing_ok=True)

    @cached_property
    def _asked(self) -> int:
        return self._shards.height * sum(setting.n for setting in self._cfg.settings.values())

    def add(self, row: dict[str, Any], reason: str) -> None:
        self._rows.append(
            {**{name: row[name] for name in FAILED if name != "reason"}, "reason": reason}
        )
        if len(self._rows) > self._most * self._asked:
            raise self._too_many()

    def write(self) -> str | None:
        """The list, and a word on it for whoever watches."""
        if not self._rows:
            return None
        write_table(self._file, self._table())
        return f"{len(self._rows)} of {pluralize(self._asked, 'completion')} failed ({self._often()}): {self._file.name}"

    def _too_many(self) -> StageError:
        self.write()
        knob = f"{find_knob(self._shards.out, 'sample')}.runtime.max_failed"
        return StageError(
            f"sample: {len(self._rows)} of {pluralize(self._asked, 'completion')} failed (most often: {self._often()})."
            f" The limit is {knob}={self._most:g}.\n  They are listed in {self._file}."
            " Mend the server, or raise the limit, and run the same command again: what came is kept."
        )

    def _often(self) -> str:
        counts = (
            self._table()["reason"]
            .value_counts()
            .sort(["count", "reason"], descending=[True, False])
        )
        return str(counts["reason"][0])

    def _table(self) -> pl.DataFrame:
        return pl.DataFrame(self._rows, schema=FAILED).sort("sample_id")
