"""Draws completions of prompts from a policy: one request and one seed for each, shard by shard.

A shard that stands in `shards.json` with its hash is finished: a killed run repeats only the shards it was in.
"""

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Model, Prompts, Samples, note_cost, write_json, write_table
from pipeline.backends import Backend, Completion, Message, Request, Text, open_backend
from pipeline.config import Draw, ScriptedBackend
from pipeline.content import digest_of, sha256_of
from pipeline.errors import Broken, Refusal
from pipeline.progress import Progress

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SAMPLE: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "round": pl.Int64,
    "prompt": MESSAGES,
    "completion": pl.String,
    "prompt_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
    "logprob": pl.Float64,
    "finish_reason": pl.String,
    "setting": pl.String,
    "temperature": pl.Float64,
    "policy": pl.String,
}
DROPPED: dict[str, Any] = {"prompt_id": pl.String, "reason": pl.String, "detail": pl.String}
FIGURES = "completions", "tokens", "prompt_tokens", "truncated"
MERGED = "scratch/merged"  # an adapter policy merged for this run; gone before anything is published


def run(cfg: Draw, out: Path, *, policy: Model, prompts: Prompts) -> Samples:
    backend = open_backend(cfg.backend, policy)
    kept, dropped = admitted(cfg, backend.text, block(cfg, prompts))
    write_table(out / "dropped.parquet", dropped)
    shards = Shards(out, kept, cfg.shard)
    if shards.missing():
        draw(Drawing(cfg, policy.path.name, backend.text, shards), backend, policy, out)
    note_cost(out, **shards.totals(), prompts=kept.height, dropped=dropped.height)
    return Samples(out)


# ── which prompts ─────────────────────────────────────────────────────────────────────────────────────────────────


def block(cfg: Draw, prompts: Prompts) -> pl.DataFrame:
    """This round's prompts: all of them, or the round's block in the order they lie in."""
    rows = prompts.read().select("prompt_id", "prompt")
    if cfg.per_round is None:
        return rows
    rounds = max(cfg.runtime.blocks, cfg.round)
    if rows.height < (needed := cfg.per_round * rounds):
        fits = rows.height // rounds
        raise Refusal(
            f"sample.per_round={cfg.per_round}: rounds={rounds} need {needed} prompts, and there are {rows.height} "
            f"({prompts.path}).\n  Give {f'sample.per_round={fits} or less, ' if fits else ''}fewer rounds, more "
            f"prompts, or sample.per_round=null, which draws from all prompts in every round."
        )
    return rows.slice((cfg.round - 1) * cfg.per_round, cfg.per_round)


def admitted(cfg: Draw, text: Text, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompts that fit, by id, and the list of those that do not: a prompt is never cut."""
    rows = rows.sort("prompt_id")
    faults = []
    for row in rows.iter_rows(named=True):
        if fault := too_long(cfg, text.context, len(text.encode(row["prompt"], cfg.template_kwargs))):
            faults.append({"prompt_id": row["prompt_id"], **fault})
    dropped = pl.DataFrame(faults, schema=DROPPED)
    if dropped.height == rows.height:
        example = f" (the first has {faults[0]['detail']})" if faults else ""
        raise Refusal(
            f"sample: none of {rows.height} prompts can be drawn from{example}.\n"
            f"  Raise limits.prompt, lower limits.completion, or give shorter prompts."
        )
    return rows.join(dropped, on="prompt_id", how="anti", maintain_order="left"), dropped


def too_long(cfg: Draw, context: int | None, tokens: int) -> dict[str, str] | None:
    if tokens > cfg.limits.prompt:
        return {"reason": "prompt_too_long", "detail": f"{tokens} tokens, limits.prompt={cfg.limits.prompt}"}
    if context is not None and tokens + cfg.limits.completion > context:
        detail = f"{tokens} tokens, limits.completion={cfg.limits.completion}, a context of {context}"
        return {"reason": "context_too_short", "detail": detail}
    return None


# ── the draws ─────────────────────────────────────────────────────────────────────────────────────────────────────


def seed_of(cfg: Draw, setting: str, prompt_id: str, index: int) -> int:
    """63 bits of a hash of all that tells two draws apart: no round, wave, setting or exam repeats another's."""
    return int(digest_of(_name_of(cfg, setting, prompt_id, index))[:16], 16) >> 1


def sample_id_of(cfg: Draw, setting: str, prompt_id: str, index: int, policy: str) -> str:
    return digest_of([*_name_of(cfg, setting, prompt_id, index), policy])[:16]


def _name_of(cfg: Draw, setting: str, prompt_id: str, index: int) -> list[str | int]:
    return [cfg.seed, cfg.purpose, cfg.round, cfg.wave, setting, prompt_id, index]


def draw(drawing: "Drawing", backend: Backend, policy: Model, out: Path) -> None:
    started = time.monotonic()
    try:
        reads_weights = not isinstance(drawing.cfg.backend, ScriptedBackend)
        whole = merged(policy, out / MERGED) if reads_weights and policy.adapter else policy
        backend.start(whole, drawing.cfg.limits)
        note_cost(out, engine_start_seconds=round(time.monotonic() - started, 2))
        for completion in backend.generate(drawing.requests()):
            drawing.take(completion)
    finally:
        backend.close()
        shutil.rmtree(out / MERGED, ignore_errors=True)
    if missing := drawing.shards.missing():
        raise Broken(f"sample: the backend ended without all completions of {len(missing)} shards ({missing[0]} …).")


def merged(policy: Model, scratch: Path) -> Model:
    """The policy with its adapter in its weights, at full precision, for this run only."""
    from pipeline.training import models

    shutil.rmtree(scratch, ignore_errors=True)
    models.load_merged(policy).save_pretrained(scratch / "weights")
    write_json(scratch / "model.json", {"weights": "weights", "remote_code": policy.remote_code})
    return Model(scratch)


class Drawing:
    """Completions on their way into their shards, joined by id; a shard is written when its last one has come."""

    def __init__(self, cfg: Draw, policy: str, text: Text, shards: "Shards"):
        self.cfg, self.policy, self.text, self.shards = cfg, policy, text, shards
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}  # shard → sample id → row, in the order of the file
        self._asked: dict[str, str] = {}  # sample id → shard, for what has not come yet
        self._left: Counter[str] = Counter()  # shard → how many that are
        self._meter: Meter

    def requests(self) -> Iterator[list[Request]]:
        """One block a shard, made when the backend asks for it."""
        self._meter = Meter(self.shards, sum(setting.n for setting in self.cfg.settings.values()))
        for shard in self.shards.missing():
            asked = [draw for prompt in self.shards.prompts(shard) for draw in self._draws_of(**prompt)]
            self._rows[shard] = {row["sample_id"]: row for row, _ in asked}
            self._asked |= dict.fromkeys(self._rows[shard], shard)
            self._left[shard] = len(asked)
            yield [request for _, request in asked]

    def take(self, completion: Completion) -> None:
        if not math.isfinite(completion.logprob):
            raise Broken(
                f"sample: a completion has the log-probability {completion.logprob}: the policy's weights or its"
                f" arithmetic in {self.cfg.backend.kind} are broken.\n  Try dtype=float32; check the checkpoint."
            )
        shard = self._asked.pop(completion.sample_id)
        self._rows[shard][completion.sample_id] |= {
            "completion": self.text.decode(completion),
            "token_ids": completion.token_ids,
            "logprob": completion.logprob,
            "finish_reason": completion.finish_reason,
        }
        self._meter.count(completion)
        self._left[shard] -= 1
        if not self._left[shard]:
            self.shards.add(shard, pl.DataFrame(list(self._rows.pop(shard).values()), schema=SAMPLE))

    def _draws_of(self, prompt_id: str, prompt: list[Message]) -> Iterator[tuple[dict[str, Any], Request]]:
        cfg, ids = self.cfg, self.text.encode(prompt, self.cfg.template_kwargs)
        for name, setting in sorted(cfg.settings.items()):  # by name: their order in the config is not in identity
            for index in range(setting.n):
                sample_id = sample_id_of(cfg, name, prompt_id, index, self.policy)
                row = {
                    "prompt_id": prompt_id,
                    "sample_id": sample_id,
                    "round": cfg.round,
                    "prompt": prompt,
                    "prompt_token_ids": ids,
                    "setting": name,
                    "temperature": setting.temperature,
                    "policy": self.policy,
                }
                seed = seed_of(cfg, name, prompt_id, index)
                yield row, Request(sample_id, ids, setting.temperature, setting.top_p, seed)


class Meter:
    """What a person watching sees."""

    def __init__(self, shards: "Shards", per_prompt: int):
        found = shards.totals()
        self._completions, self._tokens, self._truncated = found["completions"], found["tokens"], found["truncated"]
        self._found, self._started = self._tokens, time.monotonic()
        self._progress = Progress("sample", shards.height * per_prompt, "completions")
        self._progress.resume_at(self._completions)

    def count(self, completion: Completion) -> None:
        self._completions += 1
        self._tokens += len(completion.token_ids)
        self._truncated += completion.finish_reason == "length"
        speed = (self._tokens - self._found) / max(time.monotonic() - self._started, 0.001)
        self._progress.advance(
            speed=f"{speed:.0f} tok/s",
            length=f"{self._tokens / self._completions:.0f} tokens",
            truncated=f"{self._truncated / self._completions:.0%}",
        )


class Shards:
    """Prompts in fixed groups by id. `shards.json` lists each file that is done with its hash; no other counts."""

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
        write_table(self._folder / name, table)
        self._done[name] = {
            "sha256": sha256_of(self._folder / name),
            "completions": table.height,
            "tokens": int(table["token_ids"].list.len().sum()),
            "prompt_tokens": int(table["prompt_token_ids"].list.len().sum()),
            "truncated": table.filter(finish_reason="length").height,
        }
        write_json(self._list, dict(sorted(self._done.items())))

    def totals(self) -> dict[str, int]:
        return {figure: sum(entry[figure] for entry in self._done.values()) for figure in FIGURES}

    def _whole(self, name: str, entry: dict[str, Any]) -> bool:
        file = self._folder / name
        return name in self._prompts and file.exists() and sha256_of(file) == entry["sha256"]
