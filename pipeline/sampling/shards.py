"""Prompts in fixed groups by id. `shards.json` lists each file that is done with its hash; no other counts.

Hands read prompts and write files (`Shards`); the stage alone keeps the list (`Finished`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import write_json, write_table
from pipeline.content import sha256_of

FIGURES = "prompts", "completions", "tokens", "prompt_tokens", "truncated"
Entry = dict[str, Any]


class Shards:
    def __init__(self, out: Path, size: int):
        self.out, self._size = out, size
        self._asked = out / "scratch" / "asked.parquet"

    def lay_out(self, prompts: pl.DataFrame) -> list[str]:
        """Put the prompts where every hand can read its own, and name the files that they become."""
        self._asked.parent.mkdir(parents=True, exist_ok=True)
        prompts.write_parquet(self._asked, row_group_size=self._size)
        return [f"{at:05d}.parquet" for at in range(-(-prompts.height // self._size))]

    def clear(self) -> None:
        self._asked.unlink(missing_ok=True)

    def prompts(self, name: str) -> Iterator[dict[str, Any]]:
        start = int(Path(name).stem) * self._size
        return pl.scan_parquet(self._asked).slice(start, self._size).collect().iter_rows(named=True)

    def file(self, name: str) -> Path:
        return self.out / "samples" / name

    def write(self, name: str, table: pl.DataFrame) -> Entry:
        """The file, whole or not at all, and what the list shall say of it."""
        write_table(self.file(name), table)
        return {
            "sha256": sha256_of(self.file(name)),
            "prompts": table["prompt_id"].n_unique(),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "prompt_tokens": int(table["prompt_token_ids"].list.len().sum()),
            "truncated": table.filter(finish_reason="length").height,
        }


class Finished:
    def __init__(self, shards: Shards, names: list[str]):
        self._list, self._names = shards.out / "shards.json", names
        known = json.loads(self._list.read_text()) if self._list.exists() else {}
        self._done = {
            name: entry
            for name, entry in known.items()
            if name in names and shards.file(name).exists() and sha256_of(shards.file(name)) == entry["sha256"]
        }

    def missing(self) -> list[str]:
        return [name for name in self._names if name not in self._done]

    def add(self, name: str, entry: Entry) -> None:
        self._done[name] = entry
        write_json(self._list, dict(sorted(self._done.items())))

    def totals(self) -> dict[str, int]:
        return {figure: sum(entry[figure] for entry in self._done.values()) for figure in FIGURES}
