"""Prompts in fixed groups by id. `shards.json` lists each file that is done with its hash; no other counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import write_json, write_table
from pipeline.content import sha256_of

FIGURES = "completions", "tokens", "prompt_tokens", "truncated", "retokenised", "failed"


class Shards:
    def __init__(self, out: Path, prompts: pl.DataFrame, size: int):
        self.height = prompts.height
        self.out = out
        self._list, self._folder = out / "shards.json", out / "samples"
        self._prompts = {f"{at:05d}.parquet": part for at, part in enumerate(prompts.iter_slices(size))}
        known = json.loads(self._list.read_text()) if self._list.exists() else {}
        self._done = {name: entry for name, entry in known.items() if self._whole(name, entry)}

    def missing(self) -> list[str]:
        return [name for name in self._prompts if name not in self._done]

    def prompts(self, name: str) -> Iterator[dict[str, Any]]:
        return self._prompts[name].iter_rows(named=True)

    def add(self, name: str, table: pl.DataFrame, failed: int = 0) -> None:
        write_table(self._folder / name, table)
        self._done[name] = {
            "sha256": sha256_of(self._folder / name),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "prompt_tokens": int(table["prompt_token_ids"].list.len().sum()),
            "truncated": table.filter(finish_reason="length").height,
            "retokenised": table["logprob"].null_count(),
            "failed": failed,
        }
        write_json(self._list, dict(sorted(self._done.items())))

    def totals(self) -> dict[str, int]:
        return {figure: sum(entry.get(figure, 0) for entry in self._done.values()) for figure in FIGURES}

    def _whole(self, name: str, entry: dict[str, Any]) -> bool:
        """What failed in an earlier attempt is asked for again."""
        file = self._folder / name
        whole = name in self._prompts and file.exists() and sha256_of(file) == entry["sha256"]
        return whole and not entry.get("failed")
