"""Requests out, completions back into their shards, joined by id; a shard is written when its last one has come."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import polars as pl

from pipeline.backends import Completion, Failed, Message, Request, Text
from pipeline.config import Draw
from pipeline.content import digest_of
from pipeline.errors import Broken
from pipeline.sampling.failures import Failures
from pipeline.sampling.meter import Meter
from pipeline.sampling.shards import Shards

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


def seed_of(cfg: Draw, setting: str, prompt_id: str, index: int) -> int:
    """63 bits of a hash of all that tells two draws apart: no round, wave, setting or exam repeats another's."""
    return int(digest_of(_name_of(cfg, setting, prompt_id, index))[:16], 16) >> 1


def sample_id_of(cfg: Draw, setting: str, prompt_id: str, index: int, policy: str) -> str:
    return digest_of([*_name_of(cfg, setting, prompt_id, index), policy])[:16]


def _name_of(cfg: Draw, setting: str, prompt_id: str, index: int) -> list[str | int]:
    return [cfg.seed, cfg.purpose, cfg.round, cfg.wave, setting, prompt_id, index]


class Drawing:
    def __init__(self, cfg: Draw, policy: str, text: Text, shards: Shards):
        self.cfg, self.policy, self.text, self.shards = cfg, policy, text, shards
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}  # shard → sample id → row, in the order of the file
        self._asked: dict[str, str] = {}  # sample id → shard, for what has not come yet
        self._left: Counter[str] = Counter()  # shard → how many that are
        self._lost: Counter[str] = Counter()  # shard → how many of its rows failed
        per_prompt = sum(setting.n for setting in cfg.settings.values())
        self.failures = Failures(shards.out, cfg.runtime.max_failed, shards.height * per_prompt)
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

    def take(self, drawn: Completion | Failed) -> None:
        if isinstance(drawn, Failed):
            shard = self._lose(drawn)
        else:
            columns = self._columns(drawn)
            shard = self._asked.pop(drawn.sample_id)
            self._rows[shard][drawn.sample_id] |= columns
        self._meter.count(drawn)
        self._left[shard] -= 1
        if not self._left[shard]:
            rows = list(self._rows.pop(shard).values())
            self.shards.add(shard, pl.DataFrame(rows, schema=SAMPLE), failed=self._lost[shard])

    def _lose(self, failed: Failed) -> str:
        shard = self._asked.pop(failed.sample_id)
        self._lost[shard] += 1
        self.failures.add(self._rows[shard].pop(failed.sample_id), failed.reason)
        return shard

    def _columns(self, completion: Completion) -> dict[str, Any]:
        if completion.logprob is not None and not math.isfinite(completion.logprob):
            raise Broken(
                f"sample: a completion has the log-probability {completion.logprob}: the policy's weights or its"
                f" arithmetic in {self.cfg.backend.kind} are broken.\n  Try dtype=float32; check the checkpoint."
            )
        return {
            "completion": self.text.decode(completion),
            "token_ids": completion.token_ids,
            "logprob": completion.logprob,
            "finish_reason": completion.finish_reason,
        }

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
