"""Prompts in fixed groups by id. A shard counts as finished once `shards.json` has its hash.

Workers read prompts and write samples (`Shards`); the stage alone keeps the list (`ShardList`).
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
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
JOURNAL = "scratch/shards.jsonl"  # finished shards that the list lacks
GROWTH = 0.01  # the list is written when this share of it is new
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


def sum_entries(entries: Collection[ShardEntry]) -> dict[str, int]:
    return {figure: sum(entry.get(figure, 0) for entry in entries) for figure in FIGURES}


class ShardList:
    """The finished shards, as `shards.json` lists them.

    A group of `groups` is missing as a whole: other shards in the engine could change a shard's
    last digits. An entry is written to a journal at once. The list is written anew when it has
    grown by `GROWTH`: written for each of n shards, it would cost n².
    """

    def __init__(self, shards: Shards, names: list[str], group: int = 1):
        self._list, self._journal = shards.out / "shards.json", shards.out / JOURNAL
        self._count, self.groups = len(names), group_shards(names, group)
        known, expected = self._read_known(), set(names)
        self._entries = {
            name: entry
            for name, entry in known.items()
            if name in expected
            and shards.sample_file(name).exists()
            and hash_file(shards.sample_file(name)) == entry["sha256"]
            if not entry.get("failed")  # what a server did not give is requested again
        }
        for first in self.find_missing():
            for name in self.groups[first]:
                self._entries.pop(name, None)
        self._totals = sum_entries(self._entries.values())
        self._unlisted = 0
        if self._journal.exists():
            self._write()

    def _read_known(self) -> dict[str, ShardEntry]:
        known: dict[str, ShardEntry] = {}
        if self._list.exists():
            known = json.loads(self._list.read_text())
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        for line in lines:
            with suppress(ValueError):  # a killed process left half a line
                known |= json.loads(line)
        return known

    def find_missing(self) -> list[str]:
        """The groups to sample, each by its first shard."""
        return [first for first, names in self.groups.items() if set(names) - self._entries.keys()]

    def add(self, entries: Mapping[str, ShardEntry]) -> None:
        with self._journal.open("a") as file:
            file.write(json.dumps(entries) + "\n")
            file.flush()
            os.fsync(file.fileno())
        before = [self._entries[name] for name in entries if name in self._entries]
        for figure, new in sum_entries(entries.values()).items():
            self._totals[figure] += new - sum_entries(before)[figure]
        self._entries |= entries
        self._unlisted += len(entries)
        is_whole = len(self._entries) >= self._count
        if is_whole or self._unlisted > GROWTH * len(self._entries):
            self._write()

    def _write(self) -> None:
        write_json(self._list, dict(sorted(self._entries.items())))
        self._journal.unlink(missing_ok=True)
        self._unlisted = 0

    def sum_figures(self) -> dict[str, int]:
        return {**self._totals}
