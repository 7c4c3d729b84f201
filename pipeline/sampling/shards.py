"""Prompts in fixed groups by id. A shard counts as finished once `shards.json` has its hash.

Workers read prompts and write samples (`Shards`); the stage alone keeps the list (`ShardList`).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import read_table, scan_tables, write_json, write_table
from pipeline.backends import BilledTokens
from pipeline.hashing import hash_file

FIGURES = (
    "prompts",
    "completions",
    "tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "truncated",
    "stopped_by_string",
    "retokenised",
    "failed",
    "billed_prompt_tokens",
    "billed_tokens",
)
NO_BILL = BilledTokens()
ShardEntry = dict[str, Any]


class Shards:
    def __init__(self, out: Path, size: int):
        self.out, self._size = out, size
        # A shard's prompts have the same file name as its samples.
        self._prompt_folder = out / "scratch" / "asked"

    def write_prompts(self, prompts: pl.DataFrame) -> list[str]:
        """Write each shard's prompts where every worker finds them. Return the shards' names."""
        self._prompt_folder.mkdir(parents=True, exist_ok=True)
        parts = {
            f"{at:05d}.parquet": part for at, part in enumerate(prompts.iter_slices(self._size))
        }
        for name, part in parts.items():
            part.write_parquet(self._prompt_folder / name)
        return list(parts)

    def list_names(self) -> list[str]:
        """All shards, while they are sampled."""
        return sorted(file.name for file in self._prompt_folder.glob("*.parquet"))

    def remove_prompts(self) -> None:
        shutil.rmtree(self._prompt_folder, ignore_errors=True)

    def read_prompts(self, name: str) -> Iterator[dict[str, Any]]:
        return read_table(self._prompt_folder / name).iter_rows(named=True)

    def sample_file(self, name: str) -> Path:
        return self.out / "samples" / name

    @property
    def prompt_count(self) -> int:
        """Over all shards."""
        files = scan_tables(self._prompt_folder.glob("*.parquet"))
        return files.select(pl.len()).collect().item()

    def write_samples(
        self,
        file: Path,
        table: pl.DataFrame,
        failed: int = 0,
        retokenised: int = 0,
        billed: BilledTokens = NO_BILL,
    ) -> ShardEntry:
        """Write the file atomically. Return its entry for the list."""
        asked_ids = pl.coalesce("asked_token_ids", "prompt_token_ids")
        write_table(file, table)
        return {
            "sha256": hash_file(file),
            "prompts": table["prompt_id"].n_unique(),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "reasoning_tokens": int(table["reasoning_tokens"].sum()),
            "prompt_tokens": table.select(asked_ids.list.len().sum()).item(),
            "truncated": table.filter(finish_reason="length").height,
            "stopped_by_string": table["stop_string"].count(),
            "retokenised": retokenised,
            "failed": failed,
            "billed_prompt_tokens": billed.read,
            "billed_tokens": billed.written,
        }


def group_shards(names: list[str], size: int) -> dict[str, list[str]]:
    """Shards that are sampled together, by the name of the first."""
    starts = range(0, len(names), size)
    return {names[start]: names[start : start + size] for start in starts}


class ShardList:
    """The finished shards, as `shards.json` lists them.

    A group of `groups` is missing as a whole: other shards in the engine could change a shard's
    last digits.
    """

    def __init__(self, shards: Shards, names: list[str], group: int = 1):
        self._list, self._names = shards.out / "shards.json", names
        self.groups = group_shards(names, group)
        known = json.loads(self._list.read_text()) if self._list.exists() else {}
        self._entries = {
            name: entry
            for name, entry in known.items()
            if name in names
            and shards.sample_file(name).exists()
            and hash_file(shards.sample_file(name)) == entry["sha256"]
            if not entry.get("failed")  # what a server did not give is requested again
        }
        for first in self.find_missing():
            for name in self.groups[first]:
                self._entries.pop(name, None)

    def find_missing(self) -> list[str]:
        """The groups to sample, each by its first shard."""
        return [first for first, names in self.groups.items() if set(names) - self._entries.keys()]

    def add(self, entries: Mapping[str, ShardEntry]) -> None:
        self._entries |= entries
        write_json(self._list, dict(sorted(self._entries.items())))

    def sum_figures(self) -> dict[str, int]:
        entries = self._entries.values()
        return {figure: sum(entry.get(figure, 0) for entry in entries) for figure in FIGURES}
