"""Send requests out and join completions back into their shards by id.

A shard is written when its last completion has arrived, and finished with the last of its group.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import polars as pl

from pipeline.artifacts import DRAW_DIGITS, KL
from pipeline.backends import (
    BilledTokens,
    ChatTokenizer,
    Completion,
    CompletionRequest,
    FailedRequest,
    Message,
    TrainedTokenizer,
)
from pipeline.config import SampleRequest
from pipeline.data.columns import MESSAGES
from pipeline.errors import StageError, pluralize
from pipeline.hashing import hash_json
from pipeline.resources.worker_pool import Worker
from pipeline.sampling import asking, stop_strings
from pipeline.sampling.failures import Failures
from pipeline.sampling.lengths import BINS, find_bin
from pipeline.sampling.shards import ShardEntry, Shards
from pipeline.sampling.throughput import ENDED_BIN, UNFINISHED_BIN, UNFINISHED_TOKENS
from pipeline.sampling.writer import ShardWriter

REPORT_EVERY = 0.5  # seconds between two progress reports
FILL_AT_ONCE = 64  # completions that the writer detokenises together
SAMPLE: dict[str, Any] = {
    "prompt_id": pl.String,
    "sample_id": pl.String,
    "round": pl.Int64,
    "prompt": MESSAGES,
    "completion": pl.String,
    "prompt_token_ids": pl.List(pl.Int64),
    # The prompt as shown to the sampler, where its setting adds to it.
    "asked_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
    # Of the sampled tokens after the prompt as shown; null where a stop string cut them, or where
    # nothing reads it (`needs_logprob`).
    "logprob": pl.Float64,
    "finish_reason": pl.String,
    "stop_string": pl.String,  # the string that the completion was cut before
    "reasoning_tokens": pl.Int64,
    "setting": pl.String,
    "temperature": pl.Float64,
    "policy": pl.String,
}
# The same in all rows of a prompt and setting.
ASKED = ("prompt", "prompt_token_ids", "asked_token_ids")


def make_empty_samples() -> pl.DataFrame:
    """The table of a wave that had no prompts to sample."""
    return pl.DataFrame(schema=SAMPLE)


def build_table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """polars takes longer for messages and lists than for all else: so it reads them once."""
    places = dict[tuple[str, str], int]()
    at = [places.setdefault((row["prompt_id"], row["setting"]), len(places)) for row in rows]
    firsts = dict(zip(reversed(at), reversed(rows), strict=True))
    asked = [{name: firsts[place][name] for name in ASKED} for place in range(len(places))]
    table = pl.DataFrame(asked, schema={name: SAMPLE[name] for name in ASKED})[at]
    columns = {name: [row.get(name) for row in rows] for name in SAMPLE if name not in ASKED}
    others = pl.DataFrame(columns, schema={name: SAMPLE[name] for name in columns})
    return others.hstack(table).select(*SAMPLE)


def derive_seed(cfg: SampleRequest, setting: str, prompt_id: str, index: int) -> int:
    """63 bits of a hash of the sample's key, so that no two samples of a run share a seed.

    The key differs between rounds, waves, settings and purposes (training or evaluation).
    """
    return int(_hash_key(*_sample_key(cfg, setting, prompt_id, index))[:16], 16) >> 1


def derive_engine_seed(cfg: SampleRequest, gpus: str | None, joined: str = "") -> int:
    """32 bits for an engine whose requests have no seeds.

    It differs as the requests' own seeds do, and between workers, which have separate GPUs, or have
    joined from elsewhere.
    """
    key = [cfg.seed, cfg.purpose, cfg.round, cfg.wave, *sorted(cfg.settings), gpus]
    key += [joined] if joined else []
    return int(hash_json(key)[:8], 16)


def needs_logprob(setting: str, index: int) -> bool:
    """The KL is estimated from its setting's; of others a prompt's first shows a broken model."""
    return setting == KL or index == 0


def derive_sample_id(
    cfg: SampleRequest, setting: str, prompt_id: str, index: int, policy: str
) -> str:
    """Begins with a hash of the key alone, so that samples sort alike for every policy name.

    That order breaks ties between equal scores, and a policy's fingerprint changes whenever a knob
    is renamed.
    """
    key = _sample_key(cfg, setting, prompt_id, index)
    return _hash_key(*key)[:DRAW_DIGITS] + hash_json([*key, policy])[: 16 - DRAW_DIGITS]


def _sample_key(cfg: SampleRequest, setting: str, prompt_id: str, index: int) -> list[str | int]:
    return [cfg.seed, cfg.purpose, cfg.round, cfg.wave, setting, prompt_id, index]


@lru_cache(maxsize=1)  # a sample's id and its seed are derived one after the other
def _hash_key(*key: str | int) -> str:
    return hash_json(key)


class SampleCollector:
    def __init__(
        self,
        cfg: SampleRequest,
        policy: str,
        tokenizer: ChatTokenizer,
        shards: Shards,
        worker: Worker,
        knob: str = "sample",
        groups: Mapping[str, list[str]] | None = None,
        is_paid: bool = False,
        trained: TrainedTokenizer | None = None,
    ):
        """`groups`: the shards that are claimed by the first. `is_paid`: completions cost money.

        `trained`: of the model that trains on the answers, where `policy` is another one.
        """
        self.cfg, self.policy, self.tokenizer = cfg, policy, tokenizer
        self.trained = trained
        self.shards, self.worker = shards, worker
        self._groups = groups or {}
        self._group_of = {name: first for first, names in self._groups.items() for name in names}
        self._next: str | None = None  # the group that is claimed, but not requested yet
        # Shard → sample id → row, in the order of the file.
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        self._writer = ShardWriter(worker, at_once=is_paid)
        self._arrived: list[tuple[dict[str, Any], Completion]] = []  # rows to fill, and with what
        self._shard_of: dict[str, str] = {}  # sample id → shard, for missing completions
        self._missing: Counter[str] = Counter()  # shard or prompt → number of missing completions
        self._open: Counter[str] = Counter()  # group → number of its shards that miss some
        self._lost: Counter[str] = Counter()  # shard → number of its rows that failed
        self._retokenised: Counter[str] = Counter()  # shard → rows whose tokens were not sampled
        self._billed: defaultdict[str, BilledTokens] = defaultdict(BilledTokens)  # by shard
        self.failures = Failures(cfg, shards, knob)
        self._news: Counter[str] = Counter()  # figures since the last report
        self._unfinished: dict[str, int] = {}  # sample id → tokens so far, when last counted
        self._reported_unfinished: Counter[str] = Counter()  # the same by bins, as reported
        self._reported_at = 0.0

    def claim_group(self) -> bool:
        """Wait until there are shards to sample; false when all are done."""
        self._next = self.worker.claim()
        return self._next is not None

    def build_blocks(self) -> Iterator[list[CompletionRequest]]:
        """One block per group, built when the backend asks for it, while groups can be claimed."""
        while self._next is not None:
            names = self._groups.get(self._next, [self._next])
            yield [request for shard in names for request in self._open_shard(shard)]
            self._next = self.worker.claim(wait=False)

    def _open_shard(self, shard: str) -> list[CompletionRequest]:
        samples = [
            sample
            for prompt in self.shards.read_prompts(shard)
            for sample in self._build_requests(**prompt)
        ]
        self._rows[shard] = {row["sample_id"]: row for row, _ in samples}
        self._shard_of |= dict.fromkeys(self._rows[shard], shard)
        self._missing[shard] = len(samples)
        self._open[self._find_group(shard)] += 1
        self._missing.update(row["prompt_id"] for row, _ in samples)
        return [request for _, request in samples]

    def add_result(self, result: Completion | FailedRequest) -> None:
        if isinstance(result, Completion):
            self._check_logprob(result)
        shard = self._shard_of.pop(result.sample_id)
        row = self._rows[shard][result.sample_id]
        self._billed[shard] += result.billed
        if isinstance(result, FailedRequest):
            del self._rows[shard][result.sample_id]
            self._lost[shard] += 1
            self.failures.add(row, result.reason)
        else:
            stops = self.cfg.settings[row["setting"]].stop
            result, stop = stop_strings.cut_at_stop(self.tokenizer, stops, result)
            row["stop_string"] = stop
            self._retokenised[shard] += result.is_retokenised and stop is None
            self._arrived.append((row, result))
        prompt_is_done = self._count_down(row["prompt_id"])
        shard_is_done = self._count_down(shard)
        if shard_is_done or len(self._arrived) == FILL_AT_ONCE:
            self._writer.add_rows(partial(self._fill_rows, self._arrived))
            self._arrived = []
        if shard_is_done:
            self._finish_shard(shard)
        self._count_result(result, prompt_is_done)
        self._writer.finish_done()
        if shard_is_done or time.monotonic() - self._reported_at > REPORT_EVERY:
            self._send_report()

    def _fill_rows(self, arrived: list[tuple[dict[str, Any], Completion]]) -> None:
        without_text = [completion for _, completion in arrived if completion.text is None]
        texts = iter(self.tokenizer.decode_all(without_text))
        for row, completion in arrived:
            text = next(texts) if completion.text is None else completion.text
            row |= self._fill_columns(row, completion, text)

    def _find_group(self, shard: str) -> str:
        return self._group_of.get(shard, shard)

    def _finish_shard(self, shard: str) -> None:
        """Write it with what is known of it now. Its rows are filled by the time this runs."""
        group = self._find_group(shard)
        rows = list(self._rows.pop(shard).values())
        figures = self._lost[shard], self._retokenised[shard], self._billed.pop(shard)
        self._open[group] -= 1
        write = partial(self._write_shard, group, shard, rows, *figures)
        self._writer.add_shard(write, group, ends_group=not self._open[group])

    def _write_shard(
        self, group: str, shard: str, rows: list[dict[str, Any]], *figures: Any
    ) -> dict[str, ShardEntry]:
        file = self.worker.output(group, self.shards.sample_file(shard))
        return {shard: self.shards.write_samples(file, build_table(rows), *figures)}

    def _check_logprob(self, completion: Completion) -> None:
        if completion.logprob is not None and not math.isfinite(completion.logprob):
            raise StageError(
                f"sample: a completion has the log-probability {completion.logprob}:"
                f" the policy's weights or its arithmetic in {self.cfg.backend.kind} are broken.\n"
                "  Try dtype=float32; check the checkpoint."
            )

    def _fill_columns(
        self, row: dict[str, Any], completion: Completion, text: str
    ) -> dict[str, Any]:
        return {
            "completion": text,
            **self._fill_tokens(row, completion, text),
            "finish_reason": completion.finish_reason,
            "reasoning_tokens": stop_strings.count_reasoning_tokens(
                self.tokenizer,
                self.cfg.reasoning,
                row["asked_token_ids"] or row["prompt_token_ids"],
                completion,
            ),
        }

    def _fill_tokens(
        self, row: dict[str, Any], completion: Completion, text: str
    ) -> dict[str, Any]:
        """As they were sampled; an answer to be trained by another model has that model's."""
        if self.trained is None:
            return {"token_ids": completion.token_ids, "logprob": completion.logprob}
        ids = self.trained.encode_answer(row["prompt"], text, self.cfg.template_kwargs)
        is_cut = completion.finish_reason == "length"  # it has no end to learn
        return {"token_ids": ids[:-1] if is_cut else ids, "logprob": None}

    def finish(self) -> None:
        """After the last completion: wait for the writer, and check that nothing is missing."""
        self._writer.finish_all()
        if self._rows:
            raise StageError(
                "sample: the backend ended without all completions of"
                f" {pluralize(len(self._rows), 'shard')} ({min(self._rows)} …)."
            )

    def close(self) -> None:
        self._writer.close()

    def _count_down(self, key: str) -> bool:
        """Count one completion less to wait for. Return whether it was the last."""
        self._missing[key] -= 1
        if self._missing[key]:
            return False
        del self._missing[key]
        return True

    def _count_result(self, result: Completion | FailedRequest, prompt_is_done: bool) -> None:
        news, billed = self._news, result.billed
        if tokens := self._unfinished.pop(result.sample_id, 0):
            name = f"{UNFINISHED_BIN}{find_bin(tokens, self.cfg.limits.completion)}"
            for counts in (news, self._reported_unfinished):
                counts[name] -= 1
                counts[UNFINISHED_TOKENS] -= tokens
        news["prompts"] += prompt_is_done
        news["billed_prompt_tokens"] += billed.read
        news["billed_tokens"] += billed.written
        if isinstance(result, FailedRequest):
            news["failed"] += 1
            return
        truncated, length = result.finish_reason == "length", len(result.token_ids)
        news["completions"] += 1
        news["tokens"] += length
        news["truncated"] += truncated
        if not truncated:
            news[f"{ENDED_BIN}{find_bin(length, self.cfg.limits.completion)}"] += 1

    def report_unfinished(self, unfinished: Mapping[str, int]) -> None:
        """Report the tokens so far of each unfinished completion, by sample id."""
        self._news.subtract(self._reported_unfinished)
        # A completion without tokens is still waiting.
        self._unfinished = {sample_id: tokens for sample_id, tokens in unfinished.items() if tokens}
        self._reported_unfinished = self._count_by_length(self._unfinished.values())
        self._news.update(self._reported_unfinished)
        self._send_report()

    def _count_by_length(self, lengths: Iterable[int]) -> Counter[str]:
        limit, lengths = self.cfg.limits.completion, [*lengths]
        # As find_bin computes them, in half the time.
        bins = Counter([(tokens - 1) * BINS // limit for tokens in lengths])
        by_bin = {f"{UNFINISHED_BIN}{at}": count for at, count in bins.items()}
        return Counter(by_bin | {UNFINISHED_TOKENS: sum(lengths)})

    def _send_report(self) -> None:
        self.worker.report(**self._news)
        self._news.clear()
        self._reported_at = time.monotonic()

    def _build_requests(
        self,
        prompt_id: str,
        prompt: list[Message],
        prefix: str | None = None,
        prefix_token_ids: Sequence[int] = (),
    ) -> Iterator[tuple[dict[str, Any], CompletionRequest]]:
        """A prompt's rows, without their completions yet, and their requests.

        `prefix`: of an answer that is to be continued. It ends the row's prompt and its tokens.
        """
        cfg = self.cfg
        own_ids = [*self.tokenizer.encode(prompt, cfg.template_kwargs), *prefix_token_ids]
        ids = self.trained.encode(prompt, cfg.template_kwargs) if self.trained else own_ids
        shown = prompt if prefix is None else asking.begin_answer(prompt, prefix)
        # By name, because the order of the settings in the config is not part of its identity.
        for name, setting in sorted(cfg.settings.items()):
            messages = asking.build_messages(setting, prompt)
            asked_ids = None if ids == own_ids else own_ids
            if setting.has_extra_context:
                encoded = self.tokenizer.encode(messages, cfg.template_kwargs)
                asked_ids = [*encoded, *prefix_token_ids]
            stops, chat = tuple(setting.stop), tuple(messages)
            for index in range(setting.n):
                sample_id = derive_sample_id(cfg, name, prompt_id, index, self.policy)
                row = {
                    "prompt_id": prompt_id,
                    "sample_id": sample_id,
                    "round": cfg.round,
                    "prompt": shown,
                    "prompt_token_ids": ids,
                    "asked_token_ids": asked_ids,
                    "setting": name,
                    "temperature": setting.temperature,
                    "policy": self.policy,
                }
                request = CompletionRequest(
                    sample_id,
                    asked_ids or ids,
                    setting.temperature,
                    setting.top_p,
                    derive_seed(cfg, name, prompt_id, index),
                    setting.min_p,
                    stops,
                    chat,
                    needs_logprob(name, index),
                )
                yield row, request
