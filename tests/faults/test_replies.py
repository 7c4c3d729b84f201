"""Replies of servers: one that is not a verdict costs one verdict, and paid ones are never lost."""

import asyncio
import sqlite3
import time

import polars as pl
import pytest

from pipeline.backends import api_client
from pipeline.errors import StageError, UserError
from pipeline.scorers.judging.async_requests import MAX_RESPONSE_LENGTH
from tests.faults.odd_server import Odd, chat, serving
from tests.scorers.test_judge import answers, config, run_scorer
from tests.support.house import SMALL, composed

pytestmark = pytest.mark.long  # servers and their time-outs

DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = int("9" * 400)


def message(text="A", **more):
    """Anthropic's."""
    usage = {"input_tokens": 5, "output_tokens": 1}
    return {"id": "x", "type": "message", "role": "assistant", "model": "m", "usage": usage,
            "content": [{"type": "text", "text": text}], **more}  # fmt: skip


def first(**alternative):
    """Log-probabilities of the first token, one of them odd."""
    likely = {"token": "A", "logprob": -0.01}
    return {
        "choice": {"logprobs": {"content": [{**likely, "top_logprobs": [likely, alternative]}]}}
    }


def judged(server, folder, count=4, **knobs):
    """Scores of so many answers in all; each pair of them is asked about twice."""
    given = [one for at in range(count // 2) for one in answers("good", "bad", prompt=f"p{at}")]
    cfg = config(server, folder, **{"retries": 0, "concurrency": 2, **knobs})
    return run_scorer(cfg, given)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-planted")


# ── a reply that is none costs its verdict ────────────────────────────────────────────────────────

NO_VERDICT = {
    "no JSON": (Odd(b"<html>\xff\xfe"), "not JSON"),
    "NUL alone": (Odd(b"\0"), "not JSON"),
    "nothing": (Odd(b""), "not JSON"),
    "another charset": (Odd(b"\xff\xfe{", kind="application/json; charset=nonsense"), "not JSON"),
    "nested 100,000 deep": (Odd(DEEP), "not JSON"),
    "a number of 5,000 digits": (Odd(b"9" * 5000), "not JSON"),
    "a list": (Odd([]), "not a chat completion"),
    "null": (Odd(None), "not a chat completion"),
    "no choices": (Odd({"choices": {}}), "content"),
    "a choice that is text": (Odd({"choices": ["A"]}), "content"),
    "content that is a list": (Odd(chat(["A"])), "content"),
    "half a character": (Odd(chat("A\ud83d")), "surrogate"),
    "half a character as no label": (Odd(chat("\ud83d")), "surrogate"),
    "NUL": (Odd(chat("A\0")), r"'A\x00'"),
    "huge text": (
        Odd(chat("x" * (MAX_RESPONSE_LENGTH + 1))),
        f"{MAX_RESPONSE_LENGTH + 1} characters",
    ),
    "a long word": (Odd(chat("x" * 100_000)), "none of A, B, TIE"),
    "HTTP 400 with half a character": (
        Odd({"error": {"message": "\ud83d\0 " * 1000}}, 400),
        "HTTP 400",
    ),
    "HTTP 500 that is HTML": (Odd(b"<html>", 500, "text/html"), "HTTP 500"),
    "HTTP 418": (Odd(b"\xff", 418), "HTTP 418"),
    "HTTP 302 to nowhere": (Odd(b"", 302), "HTTP 302"),
}


@pytest.mark.parametrize("name", NO_VERDICT)
def test_a_reply_that_is_no_verdict_costs_it_and_says_why(tmp_path, name):
    odd, why = NO_VERDICT[name]
    with serving(lambda body: odd) as server:
        found = judged(server, tmp_path)
    assert {mark.score for mark in found} == {None} and len(server.requests) == 4
    for mark in found:
        pl.DataFrame({"detail": [mark.detail]})  # half a character would not go in
        assert why in mark.detail and len(mark.detail) < 400


ODD_VERDICTS = {
    "10^30 tokens": chat(usage={"prompt_tokens": 10**30, "completion_tokens": 10**30}),
    "negative tokens": chat(usage={"prompt_tokens": -1, "completion_tokens": True}),
    "tokens as text": chat(usage={"prompt_tokens": "many", "completion_tokens": None}),
    "usage that is a list": chat(usage=[1]),
    "a name with half a character": chat(model="m\ud83d"),
    "a long name": chat(model="m" * 100_000),
    "a name that is a list": chat(model=[HUGE]),
    "a token with half a character": chat(**first(token="\ud83d", logprob=-3)),
    "a log-probability of -10^400": chat(**first(token="B", logprob=-HUGE)),
    "a log-probability of 10^400": chat(**first(token="B", logprob=HUGE)),
    "NaN": chat(**first(token="B", logprob=float("nan"))),
    "minus infinity": chat(**first(token="B", logprob=float("-inf"))),
    "log-probabilities as text": chat(choice={"logprobs": "none"}),
    "log-probabilities of a token that is a number": chat(**first(token=7, logprob=-1)),
}


@pytest.mark.parametrize("name", ODD_VERDICTS)
def test_a_verdict_with_odd_figures_is_a_verdict_and_is_kept(tmp_path, name):
    with serving(lambda body: Odd(ODD_VERDICTS[name])) as server:
        found = judged(server, tmp_path)
        assert {mark.score for mark in found} == {0.5}  # A in both orders
        assert judged(server, tmp_path) == found, "kept, and read as it was"
    assert len(server.requests) == 4
    file = sqlite3.connect(tmp_path / "verdicts.sqlite")
    [spent] = file.execute("SELECT requests, tokens_in, tokens_out FROM spent").fetchall()
    assert spent in ((4, 0, 0), (4, 20, 4))


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (message("A\ud83d"), "surrogate"),
        (message(content=[{"type": "text", "text": 7}]), "no text"),
        (message(content="A"), "not a message"),
        (DEEP, "not JSON"),
    ],
)
def test_anthropic_s_replies_are_read_as_carefully(tmp_path, reply, why):
    with serving(lambda body: Odd(reply)) as server:
        cfg = config(
            server, tmp_path, engine="anthropic", retries=0, base_url=server.url.removesuffix("/v1")
        )
        assert {why in mark.detail for mark in run_scorer(cfg, answers("good", "bad"))} == {True}
    odd = message(usage={"input_tokens": 10**30, "output_tokens": "x"}, model="m\ud83d")
    with serving(lambda body: Odd(odd)) as server:
        cfg = config(server, tmp_path, engine="anthropic", base_url=server.url.removesuffix("/v1"))
        assert {mark.score for mark in run_scorer(cfg, answers("good", "bad"))} == {0.5}


# ── what is paid for is kept ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Odd({"error": {"message": "no"}}, 401), "HTTP 401"),
        (Odd({"error": {"message": "no"}}, 404), "HTTP 404"),
    ],
)
def test_replies_in_flight_are_kept_when_one_ends_the_step(tmp_path, fault, said):
    """Seven are on their way when the first is refused; the eighth is never asked."""
    seen = []

    def reply(body):
        seen.append(body)
        return fault if len(seen) == 1 else Odd(chat(), wait=1)

    with serving(reply) as server:
        with pytest.raises(UserError, match=said):
            judged(server, tmp_path, count=20, concurrency=8)
        assert len(server.requests) == 8
    kept = (
        sqlite3.connect(tmp_path / "verdicts.sqlite")
        .execute("SELECT count(*) FROM verdicts")
        .fetchone()
    )
    assert kept == (7,)


def test_a_client_that_breaks_on_one_reply_loses_that_one_alone(tmp_path, monkeypatch):
    from pipeline.scorers.judging import endpoint

    real = endpoint.parse_response

    def breaks(text):
        if '"odd"' in text:
            raise KeyError("planted")
        return real(text)

    monkeypatch.setattr(endpoint, "parse_response", breaks)
    seen = []
    with serving(
        lambda body: seen.append(1) or Odd(chat(model="odd" if len(seen) == 1 else "m"))
    ) as server:
        found = judged(server, tmp_path, count=8)
    assert sum(mark.score is None for mark in found) == 2 and "KeyError" in str(
        [mark.detail for mark in found]
    )


def test_fifty_failures_end_the_step_in_words(tmp_path):
    with serving(lambda body: Odd(b"[]")) as server:
        with pytest.raises(StageError, match="50 requests in a row failed"):
            judged(server, tmp_path, count=80)


# ── a timeout bounds the whole reply ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["endpoint", "anthropic"])
def test_a_reply_that_drips_is_given_up_in_time(tmp_path, engine):
    body = chat() if engine == "endpoint" else message()
    with serving(lambda _: Odd(body, drip=0.2)) as server:  # 40 seconds for all of it
        url = server.url if engine == "endpoint" else server.url.removesuffix("/v1")
        began = time.monotonic()
        found = judged(server, tmp_path, count=2, engine=engine, timeout=1, retries=1, base_url=url)
        seconds = time.monotonic() - began
    assert {mark.detail for mark in found} == {"no reply within 1 s"}
    assert len(server.requests) == 4, "each of two questions, and once more"
    assert 2 <= seconds < 10


@pytest.mark.parametrize("carrier", ["DefaultAsyncHttpxClient", "DefaultAioHttpClient"])
def test_so_it_is_for_either_carrier_of_requests(carrier):
    """Sampling goes by the first, judges by the second."""
    import openai

    place = api_client._ModelListServer("", None, timeout=1, retries=1)

    async def asked(url):
        from dataclasses import replace

        async with api_client.make_client(
            openai, openai.AsyncOpenAI, "sample", replace(place, base_url=url), carrier
        ) as client:
            await client.post("/chat/completions", body={"model": "m"}, cast_to=str)

    with serving(lambda _: Odd(chat(), drip=0.2)) as server:
        began = time.monotonic()
        with pytest.raises(openai.APITimeoutError) as error:
            asyncio.run(asked(server.url))
        assert 2 <= time.monotonic() - began < 10
        assert api_client.describe_error(openai, place, error.value) == "no reply within 1 s"
    with serving(lambda _: Odd(chat(), drip=0.002)) as server:
        asyncio.run(asked(server.url))  # a slow one that ends in time is whole


def test_a_list_of_models_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr(api_client, "LIST_TIMEOUT", 0.5)
    with serving(lambda _: Odd(b"")) as server:
        monkeypatch.setattr(
            server.RequestHandlerClass,
            "do_GET",
            lambda self: self.send(Odd({"data": []}, drip=0.3)),
        )
        began = time.monotonic()
        with pytest.raises(UserError, match="no server answers there"):
            api_client.fetch_model_card(
                "sample", api_client._ModelListServer(server.url, None, 0.5), "m"
            )
    assert time.monotonic() - began < 5


# ── no key in a request's body ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        "{api_key: planted-0123}",
        "{extra_headers: {Authorization: 'Bearer planted-0123'}}",
        "{more: [{x-api-key: planted-0123}]}",
        "{OPENAI_API_KEY: planted-0123}",
        "{user: sk-planted-0123456789}",
        "{access_token: planted-0123}",
    ],
)
def test_a_key_in_a_body_is_refused_and_not_repeated(body):
    for kind, engine in (("rubric", "endpoint"), ("pairwise", "anthropic")):
        at = "score.scorers.j"
        words = [f"+scorer@{at}={kind}", f"engine@{at}.engine={engine}", f"{at}.engine.model=m"]
        with pytest.raises(
            UserError, match=rf"{at}\.engine\.body.*runtime\.api_key_env"
        ) as refusal:
            composed(*SMALL, *words, f"{at}.engine.body={body}")
        assert "planted" not in str(refusal.value)
    rival = ["+baseline@evaluate.baselines.rival=served", "evaluate.baselines.rival.model=m"]
    rival += [
        "evaluate.baselines.rival.runtime.base_url=http://localhost:1/v1",
        f"evaluate.baselines.rival.body={body}",
    ]
    with pytest.raises(
        UserError, match=r"evaluate\.baselines\.rival\.body.*api_key_env"
    ) as refusal:
        composed(*SMALL, *rival)
    assert "planted" not in str(refusal.value)


def test_a_body_of_ordinary_fields_is_taken():
    words = ["+scorer@score.scorers.j=rubric", "score.scorers.j.engine.model=m"]
    words += [
        "score.scorers.j.engine.body={max_tokens: null, prompt_cache_key: a, logit_bias: {x: -1}}"
    ]
    body = {"max_tokens": None, "prompt_cache_key": "a", "logit_bias": {"x": -1}}
    assert composed(*SMALL, *words).score.scorers["j"].engine.body == body
