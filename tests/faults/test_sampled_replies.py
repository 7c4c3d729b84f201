"""Completions of servers: an odd one is a failed completion with a reason; the others are kept."""

import time

import openai
import polars as pl
import pytest

from pipeline.backends import Completion, CompletionRequest, FailedRequest, api_client
from pipeline.backends.chat_api import ChatApiSampler
from pipeline.backends.endpoint import EndpointSampler
from pipeline.backends.in_flight import RequestPool
from pipeline.config import EndpointBackend, ServedModel
from pipeline.errors import UserError
from tests.faults.odd_server import Odd, chat, serving

pytestmark = pytest.mark.long  # servers and their time-outs

DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = int("9" * 400)


class Words:
    """A token a byte, without a tokenizer."""

    eos, stop_ids, vocabulary_size, context = 0, [0], 256, None

    @staticmethod
    def encode_literal(text):
        return list(text.encode())

    @staticmethod
    def decode_raw(ids):
        return bytes(ids).decode("latin-1")


def opened(kind, url, **runtime):
    knobs = {"base_url": url, "api_key_env": None, "concurrency": 4, "timeout": 5, "retries": 0}
    knobs |= {"prices": {"input": 1, "output": 1}, **runtime}
    if kind is ChatApiSampler:
        told = {"kind": "served", "model": "m", "revision": None, "body": {}, "runtime": knobs}
        cfg = ServedModel.model_validate(told)
    else:
        told = {
            "kind": "endpoint",
            "model": "m",
            "require_token_ids": True,
            "runtime": {**knobs, "tolerance": 1},
        }
        cfg = EndpointBackend.model_validate(told)
    backend = kind.__new__(kind)
    backend.cfg, backend.knob, backend.tokenizer, backend.url, backend._max_tokens = (
        cfg,
        "sample",
        Words(),
        url,
        8,
    )
    backend._pool = RequestPool(cfg.runtime.concurrency, cfg.runtime.timeout)
    backend._pool.open(api_client.make_client(openai, openai.AsyncOpenAI, "sample", cfg.runtime))
    return backend


def drawn(kind, reply, count=2, **runtime):
    with serving(reply) as server:
        backend = opened(kind, server.url, **runtime)
        try:
            asked = [
                CompletionRequest(
                    f"s{at}", [65], 1.0, 1.0, at, messages=({"role": "user", "content": "a"},)
                )
                for at in range(count)
            ]
            yield from backend.generate([asked])
        finally:
            backend.close()


def text(**more):
    """A completion as vLLM gives it."""
    choice = {"index": 0, "text": "hi", "finish_reason": "stop", "token_ids": [104, 105, 0]}
    choice |= {"logprobs": {"token_logprobs": [-0.1, -0.2, -0.3]}, **more.pop("choice", {})}
    return {"id": "x", "object": "text_completion", "choices": [choice], **more}


ODD = {
    "no JSON": Odd(b"<html>\xff"),
    "nested 100,000 deep": Odd(DEEP),
    "a list": Odd([]),
    "choices that are none": Odd({"choices": 3}),
    "half a character": Odd(chat("a\ud83d")),
    "HTTP 400 with half a character": Odd({"error": {"message": "\ud83d" * 5000}}, 400),
    "an end with half a character": Odd(chat(None, choice={"finish_reason": "\ud83d" * 5000})),
    "HTTP 302": Odd(b"", 302),
}
ODD_IDS = {
    "ids as text": text(choice={"token_ids": "abc"}),
    "ids of 10^30": text(choice={"token_ids": [10**30, 1, 0]}),
    "ids below zero": text(choice={"token_ids": [-1, 1, 0]}),
    "log-probabilities of 10^400": text(
        choice={"logprobs": {"token_logprobs": [-HUGE, -HUGE, -HUGE]}}
    ),
    "NaN": text(choice={"logprobs": {"token_logprobs": [float("nan")] * 3}}),
    "a log-probability alone": text(choice={"logprobs": {"token_logprobs": 3}}),
    "an end that is a list": text(choice={"finish_reason": ["\ud83d"] * 5000}),
}


@pytest.mark.parametrize("name", [*ODD, *ODD_IDS])
@pytest.mark.parametrize("kind", [ChatApiSampler, EndpointSampler])
def test_an_odd_completion_is_a_failed_one_with_its_reason(kind, name):
    odd = ODD[name] if name in ODD else Odd(ODD_IDS[name])
    found = list(drawn(kind, lambda _: odd))
    assert [type(one) for one in found] == [FailedRequest, FailedRequest]
    pl.DataFrame(
        {"reason": [one.reason for one in found], "read": [one.billed.read for one in found]}
    )
    assert all(one.reason and len(one.reason) < 400 for one in found)


def test_odd_usage_is_no_bill():
    usage = {"prompt_tokens": 10**30, "completion_tokens": True}
    for kind, body in (
        (ChatApiSampler, chat("hi", usage=usage)),
        (EndpointSampler, text(usage=usage)),
    ):
        [found] = drawn(kind, lambda _, body=body: Odd(body), count=1)
        assert (
            isinstance(found, Completion)
            and found.billed.read == 1
            and found.billed.written in (2, 3)
        )


@pytest.mark.parametrize("kind", [ChatApiSampler, EndpointSampler])
def test_completions_under_way_are_handed_on_before_the_one_that_ends_the_run(kind):
    seen, good = [], chat("hi") if kind is ChatApiSampler else text()

    def reply(body):
        seen.append(body)
        return Odd({"error": {"message": "no"}}, 401) if len(seen) == 1 else Odd(good, wait=1)

    came = []
    with pytest.raises(UserError, match="HTTP 401"):
        came.extend(drawn(kind, reply, count=20))
    assert [type(one) for one in came] == [Completion] * 3 and len(seen) == 4


@pytest.mark.parametrize("kind", [ChatApiSampler, EndpointSampler])
def test_a_completion_that_drips_is_given_up_in_time(kind):
    began = time.monotonic()
    found = list(drawn(kind, lambda _: Odd(chat("hi"), drip=0.2), timeout=1, retries=1))
    assert [one.reason for one in found] == ["no reply within 1 s"] * 2
    assert 2 <= time.monotonic() - began < 10
