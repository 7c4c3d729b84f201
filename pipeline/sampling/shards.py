"""Prompts in fixed groups by id. `shards.json` lists each file that is done with its hash; no other counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import write_json, write_table
from pipeline.content import sha256_of

FIGURES = "completions", "tokens", "reasoning_tokens", "prompt_tokens", "truncated", "stopped_by_string"


class Shards:
    def __init__(self, out: Path, prompts: pl.DataFrame, size: int):
        self.height = prompts.height
        self._list, self._folder = out / "shards.json", out / "samples"
        self._prompts = {f"{at:05d}.parquet": part for at, part in enumerate(prompts.iter_slices(size))}
        known = json.loads(self._list.read_text()) if self._list.exists() else {}
        self._done = {name: entry for name, entry in known.items() if self._whole(name, entry)}

    def missing(self) -> list[str]:
        return [name for name in self._prompts if name not in self._done]

    def prompts(self, name: str) -> Iterator[dict[str, Any]]:
        return self._prompts[name].iter_rows(named=True)

    def add(self, name: str, table: pl.DataFrame) -> None:
        asked = pl.coalesce("asked_token_ids", "prompt_token_ids")
        write_table(self._folder / name, table)
        self._done[name] = {
            "sha256": sha256_of(self._folder / name),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "reasoning_tokens": int(table["reasoning_tokens"].sum()),
            "prompt_tokens": table.select(asked.list.len().sum()).item(),
            "truncated": table.filter(finish_reason="length").height,
            "stopped_by_string": table["stop_string"].count(),
        }
        write_json(self._list, dict(sorted(self._done.items())))

    def totals(self) -> dict[str, int]:
        return {figure: sum(entry[figure] for entry in self._done.values()) for figure in FIGURES}

    def _whole(self, name: str, entry: dict[str, Any]) -> bool:
        file = self._folder / name
        return name in self._prompts and file.exists() and sha256_of(file) == entry["sha256"]
