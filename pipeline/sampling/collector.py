"""Requests out, completions back into their shards, joined by id; a shard is written when its last one has come."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from pipeline.artifacts import DRAW_DIGITS
from pipeline.backends import Billed, Completion, Failed, Message, Request, Text
from pipeline.config import SampleRequest
from pipeline.errors import StageError, many
from pipeline.hashing import digest_of
from pipeline.resources.worker_pool import Worker
from pipeline.sampling import asking, stop_strings
from pipeline.sampling.failures import Failures
from pipeline.sampling.lengths import BINS, bin_of
from pipeline.sampling.shards import Shards
from pipeline.sampling.throughput import DRAWN_SO_FAR, ENDED, UNDER_WAY

NEWS = 0.5  # seconds between two words to whoever watches
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SAMPLE: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "round": pl.Int64,
    "prompt": MESSAGES,
    "completion": pl.String,
    "prompt_token_ids": pl.List(pl.Int64),
    "asked_token_ids": pl.List(
        pl.Int64
    ),  # the prompt as the sampler was asked, where its setting shows it more
    "token_ids": pl.List(pl.Int64),
    "logprob": pl.Float64,  # of what was drawn after what was asked; null where a stop string cut it short
    "finish_reason": pl.String,
    "stop_string": pl.String,  # what it was cut before
    "reasoning_tokens": pl.Int64,
    "setting": pl.String,
    "temperature": pl.Float64,
    "policy": pl.String,
}


def nothing() -> pl.DataFrame:
    """What a wave publishes that found nothing to draw."""
    return pl.DataFrame(schema=SAMPLE)


def seed_of(cfg: SampleRequest, setting: str, prompt_id: str, index: int) -> int:
    """63 bits of a hash of all that tells two draws apart: no round, wave, setting or exam repeats another's."""
    return int(digest_of(_name_of(cfg, setting, prompt_id, index))[:16], 16) >> 1


def sample_id_of(cfg: SampleRequest, setting: str, prompt_id: str, index: int, policy: str) -> str:
    """It begins with a hash of the draw alone, so that the order of samples is the same whatever the policy is called.

    Ties between equal scores are broken by that order. A policy's fingerprint changes with every renamed knob.
    """
    draw = _name_of(cfg, setting, prompt_id, index)
    return digest_of(draw)[:DRAW_DIGITS] + digest_of([*draw, policy])[: 16 - DRAW_DIGITS]


def _name_of(cfg: SampleRequest, setting: str, prompt_id: str, index: int) -> list[str | int]:
    return [cfg.seed, cfg.purpose, cfg.round, cfg.wave, setting, prompt_id, index]


class Drawing:
    def __init__(self, cfg: SampleRequest, policy: str, text: Text, shards: Shards, hand: Worker):
        self.cfg, self.policy, self.text, self.shards, self.hand = cfg, policy, text, shards, hand
        self._next: str | None = None  # claimed, not yet asked for
        self._rows: dict[
            str, dict[str, dict[str, Any]]
        ] = {}  # shard → sample id → row, in the order of the file
        self._asked: dict[str, str] = {}  # sample id → shard, for what has not come yet
        self._left: Counter[str] = Counter()  # shard, and prompt → how many that are
        self._lost: Counter[str] = Counter()  # shard → how many of its rows failed
        self._billed: defaultdict[str, Billed] = defaultdict(
            Billed
        )  # shard → what all of its rows cost
        self.failures = Failures(cfg, shards)
        self._news: Counter[str] = Counter()
        self._under_way: dict[str, int] = {}  # sample id → tokens so far, as it was last counted
        self._told_of: Counter[str] = Counter()  # the same by bins, as it was told
        self._told = 0.0

    def claim(self) -> bool:
        """Wait until there is a shard to draw; false when all are done."""
        self._next = self.hand.claim()
        return self._next is not None

    def requests(self) -> Iterator[list[Request]]:
        """One block a shard, made when the backend asks for it; the end when there is none to claim just now."""
        while self._next is not None:
            yield self._ask(self._next)
            self._next = self.hand.claim(wait=False)

    def _ask(self, shard: str) -> list[Request]:
        asked = [draw for prompt in self.shards.prompts(shard) for draw in self._draws_of(**prompt)]
        self._rows[shard] = {row["sample_id"]: row for row, _ in asked}
        self._asked |= dict.fromkeys(self._rows[shard], shard)
        self._left[shard] = len(asked)
        self._left.update(row["prompt_id"] for row, _ in asked)
        return [request for _, request in asked]

    def take(self, drawn: Completion | Failed) -> None:
        if isinstance(drawn, Completion):
            self._check(drawn)
        shard = self._asked.pop(drawn.sample_id)
        row = self._rows[shard][drawn.sample_id]
        self._billed[shard] += drawn.billed
        if isinstance(drawn, Failed):
            del self._rows[shard][drawn.sample_id]
            self._lost[shard] += 1
            self.failures.add(row, drawn.reason)
        else:
            drawn, stop = stop_strings.cut(self.text, self.cfg.settings[row["setting"]].stop, drawn)
            row |= self._columns(row, drawn, stop)
        whole_prompt = self._came(row["prompt_id"])
        whole_shard = self._came(shard)
        if whole_shard:
            rows = pl.DataFrame(list(self._rows.pop(shard).values()), schema=SAMPLE)
            self.hand.finish(
                shard, self.shards.write(shard, rows, self._lost[shard], self._billed.pop(shard))
            )
        self._tell(drawn, whole_prompt, now=whole_shard)

    def _check(self, completion: Completion) -> None:
        if completion.logprob is not None and not math.isfinite(completion.logprob):
            raise StageError(
                f"sample: a completion has the log-probability {completion.logprob}: the policy's weights or its"
                f" arithmetic in {self.cfg.backend.kind} are broken.\n  Try dtype=float32; check the checkpoint."
            )

    def _columns(
        self, row: dict[str, Any], completion: Completion, stop: str | None
    ) -> dict[str, Any]:
        asked = row["asked_token_ids"] or row["prompt_token_ids"]
        return {
            "completion": self.text.decode(completion)
            if completion.text is None
            else completion.text,
            "token_ids": completion.token_ids,
            "logprob": completion.logprob,
            "finish_reason": completion.finish_reason,
            "stop_string": stop,
            "reasoning_tokens": stop_strings.thinking(
                self.text, self.cfg.reasoning, asked, completion
            ),
        }

    def check_whole(self) -> None:
        if self._rows:
            raise StageError(
                f"sample: the backend ended without all completions of {many(len(self._rows), 'shard')}"
                f" ({min(self._rows)} …)."
            )

    def _came(self, what: str) -> bool:
        """Count one completion less to wait for; whether it was the last."""
        self._left[what] -= 1
        if self._left[what]:
            return False
        del self._left[what]
        return True

    def _tell(self, drawn: Completion | Failed, whole_prompt: bool, now: bool) -> None:
        billed = drawn.billed
        if tokens := self._under_way.pop(drawn.sample_id, 0):
            gone = self._binned([tokens])
            self._news.subtract(gone)
            self._told_of.subtract(gone)
        self._news.update(
            prompts=whole_prompt, billed_prompt_tokens=billed.read, billed_tokens=billed.written
        )
        if isinstance(drawn, Failed):
            self._news["failed"] += 1
        else:
            cut, length = drawn.finish_reason == "length", len(drawn.token_ids)
            self._news.update(completions=1, tokens=length, truncated=cut)
            if not cut:
                self._news[f"{ENDED}{bin_of(length, self.cfg.limits.completion)}"] += 1
        if now or time.monotonic() - self._told > NEWS:
            self._tell_news()

    def count(self, under_way: Mapping[str, int]) -> None:
        """Tell how many tokens each completion has that is being drawn, by sample id."""
        self._news.subtract(self._told_of)
        # What has no token yet still waits.
        self._under_way = {sample_id: tokens for sample_id, tokens in under_way.items() if tokens}
        self._told_of = self._binned(self._under_way.values())
        self._news.update(self._told_of)
        self._tell_news()

    def _binned(self, lengths: Iterable[int]) -> Counter[str]:
        limit, known = self.cfg.limits.completion, [*lengths]
        bins = Counter(
            [(tokens - 1) * BINS // limit for tokens in known]
        )  # as bin_of, in the half of the time
        return Counter(
            {f"{UNDER_WAY}{at}": count for at, count in bins.items()} | {DRAWN_SO_FAR: sum(known)}
        )

    def _tell_news(self) -> None:
        self.hand.report(**self._news)
        self._news.clear()
        self._told = time.monotonic()

    def _draws_of(
        self, prompt_id: str, prompt: list[Message]
    ) -> Iterator[tuple[dict[str, Any], Request]]:
        cfg, ids = self.cfg, self.text.encode(prompt, self.cfg.template_kwargs)
        for name, setting in sorted(
            cfg.settings.items()
        ):  # by name: their order in the config is not in identity
            shown = asking.shown(setting, prompt)
            more = self.text.encode(shown, cfg.template_kwargs) if setting.dressed else None
            how = (setting.temperature, setting.top_p)
            for index in range(setting.n):
                sample_id = sample_id_of(cfg, name, prompt_id, index, self.policy)
                row = {
                    "prompt_id": prompt_id,
                    "sample_id": sample_id,
                    "round": cfg.round,
                    "prompt": prompt,
                    "prompt_token_ids": ids,
                    "asked_token_ids": more,
                    "setting": name,
                    "temperature": setting.temperature,
                    "policy": self.policy,
                }
                seed = seed_of(cfg, name, prompt_id, index)
                yield (
                    row,
                    Request(
                        sample_id,
                        more or ids,
                        *how,
                        seed,
                        setting.min_p,
                        tuple(setting.stop),
                        tuple(shown),
                    ),
                )
