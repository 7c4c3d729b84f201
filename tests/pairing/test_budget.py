"""A budget of pairs, words that no answer may have, and answers that are merely longer."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Local
from pipeline.errors import UserError
from pipeline.pairing import filters, selection, split
from tests.pairing.test_pairing import PAIR, asking, config, thoroughly
from tests.support.house import composed


def spending(at_most: int | None, balance: str | None = None, seed: int = 42):
    cfg = config("best_worst")
    budget = cfg.budget.model_copy(update={"at_most": at_most, "balance": balance})
    return cfg.model_copy(update={"budget": budget, "seed": seed})


def pairs_of(prompts: list[int]) -> pl.DataFrame:
    """So many pairs of each prompt."""
    rows = [
        {"prompt_id": f"p{at}", "chosen_id": f"c{at}-{n}", "rejected_id": f"r{at}-{n}"}
        for at, count in enumerate(prompts)
        for n in range(count)
    ]
    return pl.DataFrame(
        rows, schema=dict.fromkeys(("prompt_id", "chosen_id", "rejected_id"), pl.String)
    )


COLUMNS = {f"p{at}": {"topic": "abc"[at % 3], "n": at} for at in range(50)}
numbers = st.lists(st.integers(0, 3), max_size=30)


@thoroughly
@given(numbers, st.integers(1, 40), st.integers(0, 20), st.sampled_from([None, "topic"]))
def test_a_smaller_budget_is_a_part_of_a_larger_one(prompts, budget, more, balance):
    pairs = pairs_of([1, *prompts])
    small, rest = split.spend_budget(spending(budget, balance), pairs, COLUMNS)
    large, _ = split.spend_budget(spending(budget + more, balance), pairs, COLUMNS)
    assert small.height == min(budget, pairs.height) and small.height + rest.height == pairs.height
    assert set(small.rows()) <= set(large.rows())
    assert set(small.rows()) | set(rest.rows()) == set(pairs.rows())


@thoroughly
@given(numbers, st.integers(1, 40), st.randoms())
def test_the_order_of_rows_changes_nothing(prompts, budget, random):
    pairs = pairs_of([1, *prompts])
    rows = pairs.rows()
    random.shuffle(rows)
    mixed = pl.DataFrame(rows, schema=pairs.schema, orient="row")
    cfg = spending(budget, "topic")
    assert split.spend_budget(cfg, pairs, COLUMNS)[0].equals(
        split.spend_budget(cfg, mixed, COLUMNS)[0]
    )


@thoroughly
@given(numbers, st.lists(numbers, max_size=2), st.integers(1, 3), st.randoms())
def test_over_all_rounds_a_prompt_has_no_more_pairs_than_its_budget(prompts, before, each, random):
    cfg = capped(each)
    pairs, earlier = pairs_of([1, *prompts]), list[pl.DataFrame]()
    for counts in before:  # as each round left them
        earlier.append(split.cap_prompts(cfg, pairs_of(counts), earlier)[0])
    kept, beyond = split.cap_prompts(cfg, pairs, earlier)
    assert sorted([*kept.rows(), *beyond.rows()]) == sorted(pairs.rows())
    found = pl.concat([*earlier, kept]).group_by("prompt_id").len()
    assert found["len"].max() in (None, *range(1, each + 1))
    wider, _ = split.cap_prompts(capped(each + 1), pairs, earlier)
    assert set(kept.rows()) <= set(wider.rows())
    rows = pairs.rows()
    random.shuffle(rows)
    mixed = pl.DataFrame(rows, schema=pairs.schema, orient="row")
    assert split.cap_prompts(cfg, mixed, earlier)[0].equals(kept)


def capped(per_prompt: int):
    cfg = config("best_worst")
    budget = cfg.budget.model_copy(update={"per_prompt": per_prompt})
    return cfg.model_copy(update={"budget": budget})


def test_another_seed_chooses_others_and_no_budget_takes_all():
    pairs = pairs_of([1] * 40)
    chosen = [split.spend_budget(spending(10, seed=seed), pairs, {})[0] for seed in (1, 2)]
    assert not chosen[0].equals(chosen[1])
    everything, nothing = split.spend_budget(spending(None), pairs, {})
    assert everything.equals(pairs) and nothing.height == 0


def test_a_balanced_budget_takes_the_values_of_a_column_in_turn():
    topics = {f"p{at}": {"topic": "rare" if at < 5 else "common"} for at in range(40)}
    taken, _ = split.spend_budget(spending(20, "topic"), pairs_of([1] * 40), topics)
    counts = taken["prompt_id"].map_elements(lambda i: topics[i]["topic"], return_dtype=pl.String)
    assert dict(counts.value_counts().rows()) == {"rare": 5, "common": 15}


def test_a_column_that_no_prompt_has_is_refused():
    with pytest.raises(UserError, match=r"balance=topik: no prompt has this column.*topic"):
        split.spend_budget(spending(5, "topik"), pairs_of([1] * 9), COLUMNS)
    with pytest.raises(UserError, match=r"balance=topic shares out pair.budget.at_most=N pairs"):
        composed("recipes=smoke", "pair.budget.balance=topic")


def test_a_rejected_answer_may_be_longer_by_any_number_of_tokens():
    longer = PAIR | {"chosen_tokens": 3, "rejected_tokens": 9}
    kept, _ = selection.filter_pairs(
        asking(max_token_gap=0, max_length_ratio=None), pl.DataFrame([longer])
    )
    assert kept.height == 1


ANSWERS = [
    "I am ChatGPT.",
    "i was made by openai",
    "OpenAIs",
    "The claude family.",
    "A plain answer.",
]


def list_excluded(words) -> list[bool]:
    test = filters.has_excluded_word(asking(excluded_words=words))
    return pl.DataFrame({"completion": ANSWERS}).select(test).to_series().to_list()


def test_whole_words_are_excluded_whatever_their_case(tmp_path):
    assert list_excluded(["ChatGPT", "OpenAI"]) == [True, True, False, False, False]
    assert list_excluded(["made by"]) == [False, True, False, False, False]
    assert list_excluded(["A.plain"]) == [False] * 5, "a word is no pattern"
    (tmp_path / "words.txt").write_text("# makers\nChatGPT\n\n Claude \n")
    assert list_excluded(Local(tmp_path / "words.txt")) == [True, False, False, True, False]


def test_a_list_that_cannot_be_read_or_lists_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"(?s)excluded_words=.*gone.*one word or phrase a line"):
        list_excluded(Local(tmp_path / "gone.txt"))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="it lists no word"):
        list_excluded(Local(tmp_path / "empty.txt"))
