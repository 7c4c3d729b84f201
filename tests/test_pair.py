"""Pairs: every sample, prompt and pair accounted for, joins by id, never a pair without a difference."""

import json
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import Model, Pairs, Samples, Scores, write_table
from pipeline.backends.chat import Chat
from pipeline.errors import Refusal
from pipeline.stages.pair import run
from tests.house import composed
from tests.tiny import tiny_model


@cache
def config(*words: str):
    return composed("recipes=smoke", "pair.dev={share: 0.1, least: 0, most_share: 0.5}", *words).pair.of(1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "abc", layers=1)


@pytest.fixture(scope="module")
def chat(policy) -> Chat:
    return Chat(policy)


@pytest.fixture
def paired(tmp_path, policy, chat):
    """The stage on `prompt → [(text, score, finish)]`, sampled as this policy writes."""

    def pair(answers: dict, *words: str, details: dict | None = None, more: list | None = None, **edges) -> Pairs:
        samples, scores = drawn(tmp_path / "in", chat, answers, details or {}, more or [])
        return run(config(*words), tmp_path / "out", policy=policy, samples=[samples], scores=[scores], **edges)

    return pair


def drawn(folder: Path, chat: Chat, answers: dict[str, list], details: dict, more: list) -> tuple[Samples, Scores]:
    """Two shards of each; the scores of the second before those of the first."""
    samples, scores = [], list(more)
    for prompt, texts in answers.items():
        for index, (text, score, finish) in enumerate(texts):
            name = f"{prompt}-{index}"
            samples.append(sample_row(chat, prompt, name, text, finish))
            scores.append(score_row(prompt, name, score, details.get(name, "")))
    for shard in range(2):
        write_table(folder / "a" / "samples" / f"{shard:05d}.parquet", pl.DataFrame(samples[shard::2], schema=SAMPLE))
        rows = pl.DataFrame(scores[::-1][shard::2], schema=SCORE)
        write_table(folder / "b" / "scores" / f"{shard:05d}.parquet", rows)
    return Samples(folder / "a"), Scores(folder / "b")


def sample_row(chat: Chat, prompt: str, name: str, text: str, finish: str) -> dict:
    messages = [{"role": "user", "content": f"about {prompt}"}]
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "prompt_id": prompt,
        "sample_id": name,
        "prompt": messages,
        "completion": text,
        "prompt_token_ids": chat.encode(messages, {}),
        "token_ids": [*ids, *chat.stops] if finish == "stop" else ids,
        "finish_reason": finish,
        "setting": "draw",
    }


def score_row(prompt: str, name: str, score: float | None, detail: str = "", scorer: str = "rules") -> dict:
    row = {"sample_id": name, "prompt_id": prompt, "scorer": scorer, "score": score}
    return {**row, "status": "failed" if score is None else "ok", "detail": detail}


MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
SAMPLE = {
    **dict.fromkeys(("prompt_id", "sample_id", "completion", "finish_reason", "setting"), pl.String),
    "prompt": pl.List(MESSAGE),
    "prompt_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
}
SCORE = {**dict.fromkeys(("sample_id", "prompt_id", "scorer", "status", "detail"), pl.String), "score": pl.Float64}
GOOD_AND_BAD = [("a good one", 1.0, "stop"), ("a bad one", 0.0, "stop")]


def all_pairs(pairs: Pairs) -> pl.DataFrame:
    return pl.concat([pairs.train(), pairs.dev()]).sort("prompt_id")


def reasons(pairs: Pairs) -> dict[str, str]:
    """prompt or sample → the reason why it was dropped."""
    return {row["sample_id"] or row["prompt_id"]: row["reason"] for row in pairs.dropped().iter_rows(named=True)}


def test_best_against_worst_with_the_sampler_s_own_tokens(paired, chat):
    pairs = paired({"p": [("mid", 0.5, "stop"), ("good", 1.0, "stop"), ("bad", 0.0, "stop")]})
    row = all_pairs(pairs).row(0, named=True)
    assert (row["chosen_id"], row["rejected_id"], row["margin"]) == ("p-1", "p-2", 1.0)
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]
    expected = {s: [*chat.tokenizer(s, add_special_tokens=False)["input_ids"], *chat.stops] for s in ("good", "bad")}
    assert (row["chosen_token_ids"], row["rejected_token_ids"]) == (expected["good"], expected["bad"])
    assert row["prompt_token_ids"] == chat.encode(row["prompt"], {}) and row["prompt"][0]["content"] == "about p"


def test_what_is_dropped_says_why(paired):
    pairs = paired(
        {
            "tied": [("a", 0.5, "stop"), ("b", 0.5, "stop")],
            "alone": [("a", 0.5, "stop"), ("b", None, "stop")],
            "cut": [("a", 0.5, "length"), ("b", 1.0, "length")],
            "blank": [("  ", 0.0, "stop"), ("b", 1.0, "stop"), ("c", 0.5, "stop")],
            "twins": [("same", 0.0, "stop"), ("same", 1.0, "stop")],
        },
    )
    assert reasons(pairs) == {
        "tied": "tie",
        "alone-1": "no score",
        "alone": "one usable sample",
        "cut-0": "truncated",
        "cut-1": "truncated",
        "cut": "no usable sample",
        "blank-0": "empty",
        "twins": "equal answers",
    }
    assert all_pairs(pairs)["prompt_id"].to_list() == ["blank"]


def test_a_margin_below_the_limit_makes_no_pair(paired):
    answers = {"p": [("a", 0.4, "stop"), ("b", 0.5, "stop")], "q": [("a", 0.0, "stop"), ("b", 0.5, "stop")]}
    assert reasons(paired(answers, "pair.filters.min_margin=0.2")) == {"p": "margin too small"}


def test_truncated_answers_are_allowed_when_asked(paired):
    answers = {"p": [("a", 0.4, "length"), ("b", 0.5, "stop")]}
    assert all_pairs(paired(answers, "pair.filters.allow_truncated=true")).height == 1


def test_no_pair_at_all_is_refused_with_the_counts(paired):
    with pytest.raises(Refusal, match=r"no pair is left of 2 samples for 1 prompts:\n  tie: 1"):
        paired({"tied": [("a", 0.5, "stop"), ("b", 0.5, "stop")]})


def test_scores_of_another_sampling_run_are_refused(tmp_path, policy, chat):
    samples, _ = drawn(tmp_path / "one", chat, {"p": GOOD_AND_BAD}, {}, [])
    _, scores = drawn(tmp_path / "two", chat, {"q": GOOD_AND_BAD}, {}, [])
    with pytest.raises(Refusal, match="scores are of samples that are not here, such as q-"):
        run(config(), tmp_path / "out", policy=policy, samples=[samples], scores=[scores])


def test_train_and_dev_are_split_by_prompt(paired):
    answers = {f"p{i}": [("a", 0.0, "stop"), ("b", 1.0, "stop")] for i in range(100)}
    pairs = paired(answers, "pair.dev={share: 0.02, least: 20, most_share: 0.1}")
    assert (pairs.train().height, pairs.dev().height) == (90, 10)
    assert not set(pairs.train()["prompt_id"]) & set(pairs.dev()["prompt_id"])
    unpaired = pl.read_parquet(pairs.path / "unpaired.parquet")
    assert unpaired["label"].value_counts(sort=True)["count"].to_list() == [100, 100]


