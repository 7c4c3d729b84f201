"""Prompts in fixed groups by id. `shards.json` lists each file that is done with its hash; no other counts.

Hands read prompts and write files (`Shards`); the stage alone keeps the list (`Finished`).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import read_table, write_json, write_table
from pipeline.backends import Billed
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
FREE = Billed()
Entry = dict[str, Any]


class Shards:
    def __init__(self, out: Path, size: int):
        self.out, self._size = out, size
        self._asked = out / "scratch" / "asked"  # under the name of the file that they become

    def lay_out(self, prompts: pl.DataFrame) -> list[str]:
        """Put the prompts where every hand finds those of its shard, and name the shards."""
        self._asked.mkdir(parents=True, exist_ok=True)
        parts = {
            f"{at:05d}.parquet": part for at, part in enumerate(prompts.iter_slices(self._size))
        }
        for name, part in parts.items():
            part.write_parquet(self._asked / name)
        return list(parts)

    def clear(self) -> None:
        shutil.rmtree(self._asked, ignore_errors=True)

    def prompts(self, name: str) -> Iterator[dict[str, Any]]:
        return read_table(self._asked / name).iter_rows(named=True)

    def file(self, name: str) -> Path:
        return self.out / "samples" / name

    @property
    def height(self) -> int:
        """Of all prompts that are asked."""
        return pl.scan_parquet(self._asked / "*.parquet").select(pl.len()).collect().item()

    def write(
        self, name: str, table: pl.DataFrame, failed: int = 0, billed: Billed = FREE
    ) -> Entry:
        """The file, whole or not at all, and what the list shall say of it."""
        asked = pl.coalesce("asked_token_ids", "prompt_token_ids")
        write_table(self.file(name), table)
        return {
            "sha256": hash_file(self.file(name)),
            "prompts": table["prompt_id"].n_unique(),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "reasoning_tokens": int(table["reasoning_tokens"].sum()),
            "prompt_tokens": table.select(asked.list.len().sum()).item(),
            "truncated": table.filter(finish_reason="length").height,
            "stopped_by_string": table["stop_string"].count(),
            "retokenised": table.filter(
                pl.col("logprob").is_null() & pl.col("stop_string").is_null()
            ).height,
            "failed": failed,
            "billed_prompt_tokens": billed.read,
            "billed_tokens": billed.written,
        }


class Finished:
    def __init__(self, shards: Shards, names: list[str]):
        self._list, self._names = shards.out / "shards.json", names
        known = json.loads(self._list.read_text()) if self._list.exists() else {}
        self._done = {
            name: entry
            for name, entry in known.items()
            if name in names
            and shards.file(name).exists()
            and hash_file(shards.file(name)) == entry["sha256"]
            if not entry.get("failed")  # what a server did not give is asked for again
        }

    def missing(self) -> list[str]:
        return [name for name in self._names if name not in self._done]

    def add(self, name: str, entry: Entry) -> None:
        self._done[name] = entry
        write_json(self._list, dict(sorted(self._done.items())))

    def totals(self) -> dict[str, int]:
        return {
            figure: sum(entry.get(figure, 0) for entry in self._done.values()) for figure in FIGURES
        }
