"""Pairs: every sample and prompt accounted for, joins by id, never a pair without a difference."""

import json
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.artifacts import Pairs, Samples, Scores, write_table
from pipeline.errors import Refusal
from pipeline.stages.pair import run
from tests.house import composed


@cache
def config(*words: str):
    return composed("recipes=smoke", "pair.dev={share: 0.1, least: 0, most_share: 0.5}", *words).pair


def drawn(folder: Path, answers: dict[str, list], shards: int = 2, reverse: bool = False) -> tuple[Samples, Scores]:
    """Samples and scores from `prompt → [(text, score, finish)]`, in as many shards, the scores shuffled."""
    samples, scores = [], []
    for prompt, texts in answers.items():
        for index, (text, score, finish) in enumerate(texts):
            name = f"{prompt}-{index}"
            samples.append(sample_row(prompt, name, text, finish))
            scores.append(score_row(prompt, name, score))
    if reverse:
        samples, scores = samples[::-1], scores[::-1]
    for shard in range(shards):
        write_table(
            folder / "a" / "samples" / f"{shard:05d}.parquet", pl.DataFrame(samples[shard::shards], schema=SAMPLE)
        )
        write_table(
            folder / "b" / "scores" / f"{shard:05d}.parquet", pl.DataFrame(scores[::-1][shard::shards], schema=SCORE)
        )
    return Samples(folder / "a"), Scores(folder / "b")


def sample_row(prompt: str, name: str, text: str, finish: str) -> dict:
    return {
        "prompt_id": prompt,
        "sample_id": name,
        "prompt": [{"role": "user", "content": f"about {prompt}"}],
        "completion": text,
        "prompt_token_ids": [1, *prompt.encode()],
        "token_ids": [*text.encode(), 2],
        "finish_reason": finish,
        "setting": "draw",
    }


def score_row(prompt: str, name: str, score: float | None) -> dict:
    row = {"sample_id": name, "prompt_id": prompt, "scorer": "rules", "score": score}
    return {**row, "status": "failed" if score is None else "ok", "detail": ""}


MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
SAMPLE = {
    **dict.fromkeys(("prompt_id", "sample_id", "completion", "finish_reason", "setting"), pl.String),
    "prompt": pl.List(MESSAGE),
    "prompt_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
}
SCORE = {**dict.fromkeys(("sample_id", "prompt_id", "scorer", "status", "detail"), pl.String), "score": pl.Float64}


def paired(folder: Path, answers: dict, *words: str, **how) -> Pairs:
    samples, scores = drawn(folder, answers, **how)
    return run(config(*words), folder / "out", samples=[samples], scores=[scores])


def all_pairs(pairs: Pairs) -> pl.DataFrame:
    return pl.concat([pairs.train(), pairs.dev()]).sort("prompt_id")


def reasons(pairs: Pairs) -> dict[str, str]:
    """prompt or sample → the reason why it was dropped."""
    return {row["sample_id"] or row["prompt_id"]: row["reason"] for row in pairs.dropped().iter_rows(named=True)}


def test_best_against_worst_with_the_sampler_s_own_tokens(tmp_path):
    pairs = paired(tmp_path, {"p": [("mid", 0.5, "stop"), ("good", 1.0, "stop"), ("bad", 0.0, "stop")]})
    row = all_pairs(pairs).row(0, named=True)
    assert (row["chosen_id"], row["rejected_id"], row["margin"]) == ("p-1", "p-2", 1.0)
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]
    assert row["chosen_token_ids"] == [*b"good", 2] and row["rejected_token_ids"] == [*b"bad", 2]
    assert row["prompt_token_ids"] == [1, *b"p"] and row["prompt"][0]["content"] == "about p"


def test_what_is_dropped_says_why(tmp_path):
    pairs = paired(
        tmp_path,
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


def test_a_margin_below_the_limit_makes_no_pair(tmp_path):
    answers = {"p": [("a", 0.4, "stop"), ("b", 0.5, "stop")], "q": [("a", 0.0, "stop"), ("b", 0.5, "stop")]}
    assert reasons(paired(tmp_path, answers, "pair.min_margin=0.2")) == {"p": "margin too small"}


def test_truncated_answers_are_allowed_when_asked(tmp_path):
    answers = {"p": [("a", 0.4, "length"), ("b", 0.5, "stop")]}
    assert all_pairs(paired(tmp_path, answers, "pair.allow_truncated=true")).height == 1


def test_no_pair_at_all_is_refused_with_the_counts(tmp_path):
    with pytest.raises(Refusal, match=r"no pair is left of 2 samples for 1 prompts:\n  tie: 1"):
        paired(tmp_path, {"tied": [("a", 0.5, "stop"), ("b", 0.5, "stop")]})


def test_scores_of_another_sampling_run_are_refused(tmp_path):
    samples, _ = drawn(tmp_path / "one", {"p": [("a", 0.0, "stop"), ("b", 1.0, "stop")]})
    _, scores = drawn(tmp_path / "two", {"q": [("a", 0.0, "stop"), ("b", 1.0, "stop")]})
    with pytest.raises(Refusal, match="scores are of samples that are not here, such as q-"):
        run(config(), tmp_path / "out", samples=[samples], scores=[scores])


def test_train_and_dev_are_split_by_prompt(tmp_path):
    answers = {f"p{i}": [("a", 0.0, "stop"), ("b", 1.0, "stop")] for i in range(100)}
    pairs = paired(tmp_path, answers, "pair.dev={share: 0.02, least: 20, most_share: 0.1}")
    assert (pairs.train().height, pairs.dev().height) == (90, 10)
    assert not set(pairs.train()["prompt_id"]) & set(pairs.dev()["prompt_id"])
    unpaired = pl.read_parquet(pairs.path / "unpaired.parquet")
    assert unpaired["label"].value_counts(sort=True)["count"].to_list() == [100, 100]


answers_of_a_prompt = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "cc", "", "dd e"]),
        st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]),
        st.sampled_from(["stop", "stop", "length"]),
    ),
    min_size=1,
    max_size=6,
)
batches = st.dictionaries(st.sampled_from([f"p{i}" for i in range(8)]), answers_of_a_prompt, min_size=1)
quietly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(folder: Path, answers: dict, **how) -> tuple[list, dict, dict]:
    """The pairs, what was dropped and the funnel; an empty result is refused but still written."""
    try:
        pairs = paired(folder, answers, **how)
        rows = all_pairs(pairs).rows(named=True)
    except Refusal:
        pairs, rows = Pairs(folder / "out"), []
    return rows, reasons(pairs), json.loads((folder / "out" / "funnel.json").read_text())


@quietly
@given(batches)
def test_rows_in_are_rows_out_plus_dropped_and_no_pair_is_void(tmp_path_factory, answers):
    rows, dropped, funnel = outcome(tmp_path_factory.mktemp("pair"), answers)
    assert funnel["samples_in"] == sum(map(len, answers.values()))
    assert funnel["prompts_in"] == len(answers) == len(rows) + sum(funnel["dropped_prompts"].values())
    assert len(dropped) == sum(funnel["dropped_prompts"].values()) + sum(funnel["dropped_samples"].values())
    for row in rows:
        assert row["margin"] > 0
        assert row["chosen"] != row["rejected"] and row["chosen_token_ids"] != row["rejected_token_ids"]
        assert row["chosen_id"].startswith(f"{row['prompt_id']}-") and row["rejected_id"].startswith(
            f"{row['prompt_id']}-"
        )


@quietly
@given(batches)
def test_flipping_every_score_flips_every_pair(tmp_path_factory, answers):
    distinct = {
        p: [(f"{t}{i}x", None if s is None else s + i / 100, f) for i, (t, s, f) in enumerate(rows)]
        for p, rows in answers.items()
    }
    flipped = {p: [(t, None if s is None else -s, f) for t, s, f in rows] for p, rows in distinct.items()}
    rows, _, _ = outcome(tmp_path_factory.mktemp("pair"), distinct)
    other, _, _ = outcome(tmp_path_factory.mktemp("pair"), flipped)
    assert [(r["chosen_id"], r["rejected_id"]) for r in rows] == [(r["rejected_id"], r["chosen_id"]) for r in other]


@quietly
@given(batches)
def test_order_and_shards_change_nothing(tmp_path_factory, answers):
    one = outcome(tmp_path_factory.mktemp("pair"), answers, shards=1)
    assert one == outcome(tmp_path_factory.mktemp("pair"), answers, shards=3, reverse=True)
