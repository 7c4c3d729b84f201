"""Replies that no server should send: each is a verdict or a fault that can be kept."""

import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import strategies as st

from pipeline.backends import Completion, CompletionRequest, FailedRequest
from pipeline.backends.chat_api import ChatApiSampler, _parse_reply
from pipeline.scorers.judging import anthropic, endpoint
from pipeline.scorers.judging.parsing import parse_verdict
from pipeline.scorers.judging.verdict_cache import VerdictSource, VerdictStore
from tests.faults.fuzzing import briefly, for_a_while, texts, values

labels = (
    st.sampled_from(
        ["A", "B", "TIE", " a.", '{"verdict": "A"}', "<think>B</think>A", "```json\n{}\n```"]
    )
    | texts
)
odd = values | labels
alternatives = st.lists(
    st.fixed_dictionaries({"token": odd, "logprob": values | st.floats(max_value=0)}) | values,
    max_size=3,
)
logprobs = st.fixed_dictionaries(
    {"content": st.lists(st.fixed_dictionaries({"top_logprobs": alternatives}), max_size=2)}
)
choice = st.fixed_dictionaries(
    {},
    optional={
        "message": st.fixed_dictionaries({}, optional={"content": odd}) | values,
        "finish_reason": st.sampled_from(["stop", "length", "content_filter"]) | values,
        "logprobs": logprobs | values,
    },
)
usage = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"]), values
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": odd,
        "usage": usage | values,
        "choices": st.lists(choice | values, max_size=2) | values,
        "content": st.lists(st.fixed_dictionaries({"text": odd}) | values, max_size=2) | values,
    },
)
replies = (bodies | values).map(json.dumps) | texts
QUESTION = type("Request", (), {"texts_hash": "t", "order": ""})


class Words:
    """Tokens without a tokenizer."""

    eos = 0

    @staticmethod
    def encode_literal(text: str) -> list[int]:
        return list(text.encode())


def heard(text: str, form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = VerdictStore(Path(folder) / "verdicts.sqlite")
        for number, taken in enumerate((endpoint.parse_response, anthropic.parse_response)):
            reply = taken(text)
            stands = store.save(str(number), VerdictSource("m", "", ""), QUESTION, reply)
            again = store.load_responses([str(number)]).get(str(number), reply)
            verdict = parse_verdict(again, ("A", "B", "TIE"), form)
            assert stands == reply and parse_verdict(stands, ("A", "B", "TIE"), form) == verdict
            assert bool(verdict.fault) == (not verdict.probabilities) and len(verdict.fault) < 500
            assert not verdict.probabilities or abs(sum(verdict.probabilities.values()) - 1) < 1e-6
            pl.DataFrame({"fault": [verdict.fault], "model": [verdict.model]})
        store.close()
    backend = ChatApiSampler.__new__(ChatApiSampler)
    backend.tokenizer = Words()  # type: ignore[assignment]
    drawn = backend._parse_completion(CompletionRequest("s", [1], 1.0, 1.0, 1), _parse_reply(text))
    assert isinstance(drawn, Completion | FailedRequest)
    kept = drawn.text if isinstance(drawn, Completion) else drawn.reason
    pl.DataFrame({"kept": [kept], "read": [drawn.billed.read], "written": [drawn.billed.written]})


KINDS = {"text": replies, "form": st.sampled_from(["word", "json"])}


def test_any_reply_is_a_verdict_or_a_fault():
    briefly(heard, **KINDS)


@pytest.mark.slow
def test_any_reply_is_a_verdict_or_a_fault_for_a_while():
    for_a_while(heard, **KINDS)
