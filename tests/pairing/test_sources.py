"""Pairs by who wrote the answers: for every strategy what must hold, and what `by_source` takes."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import BySource
from pipeline.pairing import filters, strategies
from pipeline.pairing.candidates import join_candidates, number_prompts
from tests.pairing.test_pairing import (
    OTHERS,
    POOL,
    RANKED,
    SYMMETRIC,
    batches,
    config,
    ids,
    outcome,
    quietly,
    rescored,
    table,
    thoroughly,
    told_apart,
)

SIDES = [("strong", "weak"), ("policy", None), (None, "weak")]


def by_source(chosen: str | None, rejected: str | None, **changes):
    strategy = BySource(kind="by_source", chosen=chosen, rejected=rejected)
    return config("best_worst").model_copy(update={"strategy": strategy, **changes})


def with_source(strategy: str, source: str, *words: str):
    return config(strategy, *words).model_copy(update={"at_least_one": source})


def unscored(samples: pl.DataFrame) -> pl.DataFrame:
    return join_candidates(samples, None, "rules").rows


every = pytest.mark.parametrize("strategy", [*SYMMETRIC, *OTHERS])
sides = pytest.mark.parametrize(("chosen", "rejected"), SIDES)


@every
@pytest.mark.parametrize("words", [(), ("pair.ties=both",)], ids=["defaults", "ties"])
@quietly
@given(batches, st.sampled_from(POOL))
def test_each_pair_has_an_answer_of_the_source_and_nothing_is_lost(
    strategy, words, answers, source
):
    samples, scores = table(answers)
    found, kept, dropped = outcome(with_source(strategy, source, *words), samples, scores)
    assert samples.height == found.usable + found.dropped_samples.height
    assert len(answers) == found.pairs["prompt_id"].n_unique() + found.dropped_prompts.height
    assert found.pairs.height == kept.height + dropped.height
    writer = dict(samples.select("sample_id", pl.col("source").cast(pl.String)).rows())
    for row in kept.iter_rows(named=True):
        written = [writer[row["chosen_id"]], writer[row["rejected_id"]]]
        assert written == [row["chosen_source"], row["rejected_source"]] and source in written
        assert row["origin"] == ("on-policy" if {*written} == {"policy"} else "pool")


@every
@quietly
@given(batches, st.sampled_from(POOL), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_pair_with_a_source(strategy, answers, source, random):
    cfg = with_source(strategy, source)
    samples, scores = table(answers)
    _, kept, _ = outcome(cfg, samples, scores)
    shuffled = [t[random.sample(range(t.height), t.height)] for t in (samples, scores)]
    _, kept_too, _ = outcome(cfg, *shuffled)
    assert ids(kept) == ids(kept_too)


@pytest.mark.parametrize("strategy", RANKED)
@quietly
@given(batches, st.sampled_from(POOL), st.sampled_from([0.125, 64.0]))
def test_scaling_the_scores_changes_no_pair_with_a_source(strategy, answers, source, scale):
    cfg = with_source(strategy, source)
    _, kept, _ = outcome(cfg, *table(answers))
    _, scaled, _ = outcome(cfg, *table(rescored(answers, scale)))
    assert ids(kept) == ids(scaled)


@pytest.mark.parametrize("strategy", SYMMETRIC)
@quietly
@given(batches, st.sampled_from(POOL))
def test_flipping_all_scores_flips_all_pairs_with_a_source(strategy, answers, source):
    answers, cfg = told_apart(answers), with_source(strategy, source)
    _, kept, _ = outcome(cfg, *table(answers))
    _, flipped, _ = outcome(cfg, *table(rescored(answers, -1.0)))
    assert sorted(ids(kept)) == sorted((b, a) for a, b in ids(flipped))


@sides
@quietly
@given(batches, st.randoms(use_true_random=False))
def test_the_sides_are_of_the_named_sources(chosen, rejected, answers, random):
    cfg = by_source(chosen, rejected)
    samples, scores = table(answers)
    found, kept, dropped = outcome(cfg, samples, scores)
    assert samples.height == found.usable + found.dropped_samples.height
    assert len(answers) == found.pairs.height + found.dropped_prompts.height
    assert found.pairs.height == kept.height + dropped.height
    for side, name in (("chosen", chosen), ("rejected", rejected)):
        assert name is None or set(kept[f"{side}_source"]) <= {name}
    assert (kept["margin"] > 0).all()
    shuffled = [t[random.sample(range(t.height), t.height)] for t in (samples, scores)]
    assert ids(outcome(cfg, *shuffled)[1]) == ids(kept)
    assert ids(outcome(cfg, *table(rescored(answers, 64.0)))[1]) == ids(kept)


@quietly
@given(batches, st.randoms(use_true_random=False))
def test_without_scores_every_prompt_that_both_answered_has_a_pair(answers, random):
    cfg = by_source("strong", "weak", scored=False)
    samples, _ = table(told_apart(answers))
    rows = samples[random.sample(range(samples.height), samples.height)]
    candidates = join_candidates(rows, None, "rules")
    listed = candidates.list_rows(usable(cfg, rows))
    numbers = candidates.rows["p"].to_numpy()[listed]
    found = strategies.propose(cfg, strategies.UsableSamples(candidates.rows, listed, numbers, {}))
    known = unscored(rows).filter(pl.Series(usable(cfg, rows)))
    by_prompt = {key[0]: set(part["source"]) for key, part in known.group_by("prompt_id")}
    both = {prompt for prompt, written in by_prompt.items() if {"strong", "weak"} <= written}
    assert set(unscored(rows)["prompt_id"].gather(found["chosen"])) == both
    assert found.height == len(both)


def usable(cfg, samples: pl.DataFrame):
    tests = filters.build_tests(cfg, filters.SAMPLES)
    return filters.find_first_reasons(unscored(samples), tests) == 0


def test_the_best_of_the_one_against_the_worst_of_the_other():
    texts = [(f"text {i}", i / 10, "stop") for i in (3, 9, 2, 5, 6, 4)]
    _, kept, _ = outcome(by_source("policy", "weak"), *table({"p": texts}))
    assert ids(kept) == [("3-p", "2-p")]  # the policy has 0.3 and 0.5, weak 0.2 and 0.4
    _, kept, _ = outcome(by_source(None, "weak"), *table({"p": texts}))
    assert ids(kept) == [("1-p", "2-p")]
    asked = by_source(None, "weak", at_least_one="policy")
    assert ids(outcome(asked, *table({"p": texts}))[1]) == [("3-p", "2-p")]


def test_a_worse_answer_is_never_chosen_where_scores_are_known():
    texts = [("a", 0.5, "stop"), ("b", 0.1, "stop"), ("c", 0.4, "stop")]
    found, kept, _ = outcome(by_source("strong", "weak"), *table({"p": texts}))
    assert kept.is_empty()
    assert found.dropped_prompts["reason"].to_list() == [filters.UNPAIRED]


def test_prompts_that_one_source_alone_answered_are_counted():
    answers = {"p": [("a", 0.5, "stop"), ("b", 0.1, "stop")]}  # weak has no answer
    found, _, _ = outcome(by_source("strong", "weak"), *table(answers))
    assert found.dropped_prompts["reason"].to_list() == [filters.NOT_BY_BOTH]


names = st.sampled_from([f"p{i}" for i in range(9)])
# One model after the other: all the same prompts, or others of each, or one a part of them.
by_model = st.builds(
    lambda prompts, times, more: (
        [(prompt, model) for model in range(times) for prompt in prompts]
        + [(prompt, times) for prompt in more]
    ),
    st.lists(names, max_size=9).map(sorted),
    st.integers(1, 4),
    st.lists(names, max_size=9).map(sorted),
)


@thoroughly
@given(by_model | st.lists(st.tuples(names, st.integers(0, 3)), max_size=30))
def test_prompts_are_numbered_whatever_their_order(rows):
    prompts, models = [prompt for prompt, _ in rows], [POOL[model % len(POOL)] for _, model in rows]
    ids, sources = (
        pl.Series("prompt_id", prompts, pl.String),
        pl.Series(models, dtype=pl.Enum(POOL)),
    )
    sorted_ids, numbers, order = number_prompts(ids, sources)
    assert sorted_ids.to_list() == sorted({*prompts})
    assert numbers.tolist() == (ids.rank("dense") - 1).to_list()
    listed = range(len(ids)) if order is None else order.tolist()
    assert [*listed] == sorted(range(len(ids)), key=lambda row: prompts[row])
