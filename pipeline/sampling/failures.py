"""Completions that a server did not give: listed in `failed.parquet`, kept out of the samples.

Too many of them end the run.
"""

from functools import cached_property
from typing import Any

import polars as pl

from pipeline.artifacts import write_table
from pipeline.config import AnswersFile, SampleRequest
from pipeline.errors import StageError, pluralize
from pipeline.sampling.shards import Shards

FAILED_SCHEMA: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "setting": pl.String,
    "reason": pl.String,
}


class Failures:
    """The failures of this attempt. The next one samples the shards that lost rows again."""

    def __init__(self, cfg: SampleRequest, shards: Shards, knob: str):
        self._cfg, self._shards, self._max_share = cfg, shards, cfg.runtime.max_failed
        # A baseline has a separate block, and the limit of all evaluations.
        self._limits = "evaluate.sample" if knob.startswith("evaluate.baselines.") else knob
        self._file = shards.out / "failed.parquet"
        self._rows: list[dict[str, str]] = []
        self._file.unlink(missing_ok=True)

    @cached_property
    def _request_count(self) -> int:
        per_prompt = sum(setting.n for setting in self._cfg.settings.values())
        return self._shards.prompt_count * per_prompt

    def add(self, row: dict[str, Any], reason: str) -> None:
        ids = {name: row[name] for name in FAILED_SCHEMA if name != "reason"}
        self._rows.append({**ids, "reason": reason})
        if len(self._rows) > self._max_share * self._request_count:
            raise self._make_limit_error()

    def write(self) -> str | None:
        """Write the list. Return a line about it for the screen."""
        if not self._rows:
            return None
        write_table(self._file, self._build_table())
        return (
            f"{len(self._rows)} of {pluralize(self._request_count, 'completion')} failed"
            f" ({self._find_most_common_reason()}): {self._file.name}"
        )

    def _make_limit_error(self) -> StageError:
        self.write()
        return StageError(
            f"sample: {len(self._rows)} of {pluralize(self._request_count, 'completion')} failed"
            f" (most often: {self._find_most_common_reason()})."
            f" The limit is {self._limits}.runtime.max_failed={self._max_share:g}.\n"
            f"  They are listed in {self._file}."
            f" {self._suggest_remedy()} or raise the limit, then run the same command again;"
            " finished completions are kept."
        )

    def _suggest_remedy(self) -> str:
        if isinstance(self._cfg.backend, AnswersFile):
            return f"Complete {self._cfg.backend.file}"
        return "Fix the server"

    def _find_most_common_reason(self) -> str:
        reasons = self._build_table()["reason"]
        counts = reasons.value_counts().sort(["count", "reason"], descending=[True, False])
        return str(counts["reason"][0])

    def _build_table(self) -> pl.DataFrame:
        return pl.DataFrame(self._rows, schema=FAILED_SCHEMA).sort("sample_id")
