"""Choosing pairs, in columns: for every strategy and filter what must hold whatever the samples
are."""

from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import minhash
from pipeline.pairing import duplicates, filters, selection, strategies
from pipeline.pairing.arrow_views import length_and_prefix, match_texts
from pipeline.pairing.candidates import join_candidates
from pipeline.text import REFUSAL, REFUSAL_OPENING
from tests.support.house import composed

SYMMETRIC = ["best_worst", "random", "top_bottom", "all_pairs", "margin_band", "length_matched"]
OTHERS = ["best_random", "sigma"]
RANKED = ["best_worst", "best_random", "random", "top_bottom", "all_pairs", "length_matched"]
POOL = ["policy", "strong", "weak"]  # the answers of a prompt are theirs by turns
ASKED = (
    "pair.filters={allow_refusals: false, repeats: true, pass_rate: {threshold: 0.5, min: 0.1,"
    " max: 0.9}, min_margin: 0.1, "
    "min_chosen: 0.2, max_rejected: 0.9, max_length_ratio: 3, near_duplicate_threshold: 0.9}"
)


@cache
def config(strategy: str, *words: str):
    return composed("recipes=smoke", f"pair={strategy}", *words).pair.for_round(1)


def asking(**changes):
    """best_worst with these filters."""
    cfg = config("best_worst")
    return cfg.model_copy(update={"filters": cfg.filters.model_copy(update=changes)})


def table(
    answers: dict[str, list[tuple[str, float | None, str]]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = [
        {
            "prompt_id": p,
            "sample_id": f"{i}-{p}",
            "completion": text,
            "finish_reason": finish,
            "score": score,
        }
        for p, texts in answers.items()
        for i, (text, score, finish) in enumerate(texts)
    ]
    whole = pl.DataFrame(
        rows, schema={**dict.fromkeys(list(rows[0])[:4], pl.String), "score": pl.Float64}
    )
    tokens = pl.col("completion").str.len_bytes().cast(pl.UInt32)
    place = pl.col("sample_id").str.split("-").list.get(0).cast(pl.Int64) % len(POOL)
    samples = whole.drop("score").with_columns(
        tokens=tokens,
        prompt_tokens=pl.lit(3, pl.UInt32),
        second_bos=pl.lit(False),
        source=place.replace_strict(dict(enumerate(POOL)), return_dtype=pl.Enum(POOL)),
    )
    return samples, whole.select("sample_id", "score", scorer=pl.lit("rules"), detail=pl.lit(""))


def outcome(
    cfg, samples: pl.DataFrame, scores: pl.DataFrame
) -> tuple[selection.Proposal, pl.DataFrame, pl.DataFrame]:
    found = selection.propose_pairs(cfg, join_candidates(samples, scores, "rules"))
    pairs = selection.sort_pairs(found.pairs).with_columns(prompt_text=pl.col("prompt_id"))
    signs = [
        pl.lit(None, pl.Float64).alias(n)
        for n in ("disagreement", "flip_rate", "annotators", "reference")
    ]
    kept, dropped = selection.filter_pairs(cfg, pairs.with_columns(signs))
    return found, kept, dropped


def ids(kept: pl.DataFrame) -> list[tuple[str, str]]:
    return kept.select("chosen_id", "rejected_id").rows()


answers_of_a_prompt = st.lists(
    st.tuples(
        st.sampled_from(
            ["a", "b", "cc", "", "dd e", "I'm sorry, but no", "a long one with many words in it"]
        ),
        st.sampled_from([None, float("nan"), 0.0, 0.25, 0.5, 0.75, 1.0]),
        st.sampled_from(["stop", "stop", "length"]),
    ),
    min_size=1,
    max_size=6,
)
batches = st.dictionaries(
    st.sampled_from([f"p{i}" for i in range(8)]), answers_of_a_prompt, min_size=1
)
quietly = settings(max_examples=10, deadline=None)
thoroughly = settings(max_examples=50, deadline=None)
every = pytest.mark.parametrize("strategy", [*SYMMETRIC, *OTHERS])


@every
@pytest.mark.parametrize(
    "words", [(), (ASKED,), ("pair.ties=both",)], ids=["defaults", "all filters", "ties"]
)
@quietly
@given(batches)
def test_in_is_out_plus_dropped_and_no_pair_is_void(strategy, words, answers):
    cfg = config(strategy, *words)
    samples, scores = table(answers)
    found, kept, dropped = outcome(cfg, samples, scores)
    assert samples.height == found.usable + found.dropped_samples.height
    assert len(answers) == found.pairs["prompt_id"].n_unique() + found.dropped_prompts.height
    assert found.pairs.height == kept.height + dropped.height
    prompt_of = dict(samples.select("sample_id", "prompt_id").rows())
    for row in kept.iter_rows(named=True):
        assert row["chosen_id"] != row["rejected_id"] and row["chosen_text"] != row["rejected_text"]
        assert prompt_of[row["chosen_id"]] == prompt_of[row["rejected_id"]] == row["prompt_id"]
        assert row["margin"] > 0 or (cfg.ties == "both" and row["margin"] == 0)
    assert kept.group_by("prompt_id").len()["len"].max() in (
        *range(1, max(cfg.pairs_per_prompt, 2) + 1),
        None,
    )
    assert dropped["reason"].null_count() == found.dropped_samples["reason"].null_count() == 0


def told_apart(answers: dict) -> dict:
    """Texts that differ, so that no pair is void."""
    return {
        p: [(f"{t}{i}x", s, f) for i, (t, s, f) in enumerate(rows)] for p, rows in answers.items()
    }


def rescored(answers: dict, scale: float) -> dict:
    return {
        p: [(t, None if s is None else scale * s, f) for t, s, f in rows]
        for p, rows in answers.items()
    }


@pytest.mark.parametrize("strategy", SYMMETRIC)
@quietly
@given(batches)
def test_flipping_all_scores_flips_all_pairs(strategy, answers):
    answers = told_apart(answers)
    _, kept, _ = outcome(config(strategy), *table(answers))
    _, flipped, _ = outcome(config(strategy), *table(rescored(answers, -1.0)))
    assert sorted(ids(kept)) == sorted((b, a) for a, b in ids(flipped))


@pytest.mark.parametrize("strategy", OTHERS)
@quietly
@given(batches)
def test_flipped_scores_never_prefer_the_same_answer(strategy, answers):
    """These two choose the sides by different rules, so that the pairs differ; each still follows
    its scores."""
    answers = told_apart(answers)
    _, kept, _ = outcome(config(strategy), *table(answers))
    _, flipped, _ = outcome(config(strategy), *table(rescored(answers, -1.0)))
    assert not set(ids(kept)) & set(ids(flipped))
    assert set(kept["prompt_id"]) == set(flipped["prompt_id"])


@every
@quietly
@given(batches, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_scores_changes_nothing(strategy, answers, random):
    cfg = config(strategy, ASKED)
    samples, scores = table(answers)
    before, kept, dropped = outcome(cfg, samples, scores)
    shuffled = [t[random.sample(range(t.height), t.height)] for t in (samples, scores)]
    after, kept_too, dropped_too = outcome(cfg, *shuffled)
    lean = [name for name in kept.columns if name not in ("chosen", "rejected")]
    assert kept.select(lean).equals(kept_too.select(lean)) and dropped.equals(dropped_too)
    by = ["prompt_id", "sample_id"]
    assert before.dropped_samples.sort(by).equals(after.dropped_samples.sort(by))
    assert before.dropped_prompts.equals(after.dropped_prompts)


@pytest.mark.parametrize("strategy", RANKED)
@quietly
@given(batches, st.sampled_from([0.125, 2.0, 64.0]))
def test_scaling_the_scores_changes_no_pair(strategy, answers, scale):
    _, kept, _ = outcome(config(strategy), *table(answers))
    _, scaled, _ = outcome(config(strategy), *table(rescored(answers, scale)))
    assert ids(kept) == ids(scaled)


# ── what each strategy takes ──────────────────────────────────────────────────────────────────────


SIX = {
    "p": [
        ("one", 0.0, "stop"),
        ("twenty", 0.2, "stop"),
        ("three", 0.5, "stop"),
        ("fo", 0.6, "stop"),
        ("six", 1.0, "stop"),
    ]
}


@pytest.mark.parametrize(
    ("strategy", "words", "expected"),
    [
        ("best_worst", (), {(4, 0)}),
        ("top_bottom", (), {(4, 0), (4, 1), (3, 0), (3, 1)}),
        ("top_bottom", ("pair.strategy.k=1",), {(4, 0)}),
        ("all_pairs", ("pair.pairs_per_prompt=2",), {(4, 0), (4, 1)}),
        ("all_pairs", ("pair.pairs_per_prompt=99",), {(a, b) for a in range(5) for b in range(a)}),
        ("sigma", ("pair.strategy.below=1",), {(4, 1)}),  # µ 0.46, σ 0.344: 0.116 is nearest to 0.2
        ("sigma", (), {(4, 0)}),
        ("margin_band", ("pair.strategy.low=0", "pair.strategy.high=0.1"), {(3, 2)}),
        ("length_matched", ("pair.strategy.ratio=1",), {(4, 0)}),
        ("length_matched", ("pair.strategy.ratio=1.2",), {(4, 0)}),
    ],
)
def test_a_strategy_takes_these(strategy, words, expected):
    _, kept, _ = outcome(config(strategy, *words), *table(SIX))
    assert {(int(a.split("-")[0]), int(b.split("-")[0])) for a, b in ids(kept)} == expected


def test_random_strategies_hang_on_the_seed_and_reach_every_pair():
    found = set()
    for seed in range(40):
        for strategy in ("random", "best_random"):
            _, kept, _ = outcome(config(strategy).model_copy(update={"seed": seed}), *table(SIX))
            found |= {(strategy, *ids(kept)[0])}
    assert len({one for one in found if one[0] == "best_random"}) == 4
    assert len({one for one in found if one[0] == "random"}) >= 7


def test_pairs_are_found_across_the_slices_that_they_are_searched_in(monkeypatch):
    answers = {
        f"p{i}": [("a", 0.0, "stop"), ("b", 1.0, "stop"), ("c", 0.5, "stop")] for i in range(10)
    }
    _, whole, _ = outcome(config("all_pairs"), *table(answers))
    monkeypatch.setattr(strategies, "PROMPTS_AT_ONCE", 3)
    _, sliced, _ = outcome(config("all_pairs"), *table(answers))
    assert whole.height == 30 and whole.equals(sliced)


# ── what each filter drops ────────────────────────────────────────────────────────────────────────

PAIR = {
    "prompt_id": "p",
    "prompt_text": "p",
    "chosen_id": "a",
    "rejected_id": "b",
    "chosen_text": "yes it is",
    "rejected_text": "no",
    "chosen_score": 0.8,
    "rejected_score": 0.3,
    "margin": 0.5,
    "chosen_tokens": 6,
    "rejected_tokens": 3,
    "prompt_tokens": 4,
    "disagreement": 0.5,
    "flip_rate": 0.4,
    "reference": -3.0,
}


@pytest.mark.parametrize(
    ("reason", "word", "loose", "strict"),
    [
        ("margin too small", "min_margin", 0.5, 0.51),
        ("chosen score too low", "min_chosen", 0.8, 0.81),
        ("rejected score too high", "max_rejected", 0.3, 0.29),
        ("length ratio", "max_length_ratio", 2, 1.9),
        ("chosen too much longer", "max_token_gap", 3, 2),
        ("scorers disagree", "max_disagreement", 0.5, 0.49),
        ("judge flips", "max_flip_rate", 0.4, 0.39),
        ("unlikely under the reference", "min_reference", -3, -2.9),
        ("nearly equal answers", "near_duplicate_threshold", 0.9, None),
    ],
)
def test_a_filter_s_limit_is_where_it_says(reason, word, loose, strict):
    rows = pl.DataFrame([PAIR])
    kept, _ = selection.filter_pairs(asking(**{word: loose}), rows)
    assert kept.height == 1
    if strict is not None:
        _, dropped = selection.filter_pairs(asking(**{word: strict}), rows)
        assert dropped["reason"].to_list() == [reason]


def test_what_limits_would_cut_is_dropped():
    for change in ({"prompt_tokens": 5}, {"chosen_tokens": 7}, {"rejected_tokens": 7}):
        _, dropped = selection.filter_pairs(
            config("best_worst", "limits={prompt: 4, completion: 6}"), pl.DataFrame([PAIR | change])
        )
        assert dropped["reason"].to_list() == ["longer than limits"]


def test_a_value_that_is_not_known_drops_nothing():
    unknown = dict.fromkeys(
        ["chosen_score", "rejected_score", "margin", "disagreement", "flip_rate", "reference"]
    )
    cfg = asking(
        min_margin=9,
        min_chosen=9,
        max_rejected=0,
        max_flip_rate=0,
        max_disagreement=0,
        min_reference=0,
    )
    kept, _ = selection.filter_pairs(
        cfg, pl.DataFrame([PAIR | unknown], schema_overrides=dict.fromkeys(unknown, pl.Float64))
    )
    assert kept.height == 1


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with this request.", True),
        ("As an AI language model, I have no opinion.", True),
        ("Sorry, but I can't.", True),
        ("The sorry state of I cannot say what.", False),
        ("Unfortunately, it rained all day.", False),
    ],
)
def test_refusals_are_known_by_how_they_begin(text, is_one):
    test = filters.is_refusal(asking(allow_refusals=False))
    assert pl.DataFrame({"completion": [text]}).select(test).item() == is_one


@thoroughly
@given(st.lists(st.text(" \t\n\x0b\x1f\x85\u00a0\u2003\u3000!a~é", max_size=4), min_size=1))
def test_an_answer_of_white_space_alone_is_empty(texts):
    rows = pl.DataFrame({"completion": texts})
    found = rows.select(filters.is_empty(config("best_worst"))).to_series()
    assert found.to_list() == rows["completion"].str.contains(r"^\s*$").to_list()


@thoroughly
@given(
    st.lists(
        st.one_of(st.from_regex(REFUSAL), st.text("isouamn's’ ſ\t_.", max_size=4)), max_size=12
    )
)
def test_every_refusal_is_found_by_how_it_begins(texts):
    """Most texts are not read: their first two bytes are enough to tell."""
    rows = pl.DataFrame({"completion": texts}, schema={"completion": pl.String})
    found = rows.select(filters.is_refusal(asking(allow_refusals=False))).to_series()
    assert found.to_list() == rows["completion"].str.contains(REFUSAL).to_list()


def test_texts_are_seen_through_slices_and_chunks():
    kept, apart = ["", "i", "I'm sorry, I cannot say anything of that"], pl.Series(["I'm sorry"])
    texts = pl.concat([apart, pl.Series(kept[:1]), pl.Series(kept[1:])], rechunk=False)
    for some in (
        texts[1:],
        texts.rechunk()[1:],
        texts.filter(pl.Series([False, True, True, True])),
    ):
        assert some.to_list() == kept
        assert match_texts(some, REFUSAL, REFUSAL_OPENING).to_list() == [False, False, True]
        assert length_and_prefix(some).tolist() == length_and_prefix(pl.Series(kept)).tolist()
    assert match_texts(texts[:0], REFUSAL, REFUSAL_OPENING).to_list() == []


def test_languages_other_than_those_asked_for_are_dropped():
    texts = [
        "The old lantern hung above the quiet river all night long.",
        "Die alte Laterne hing die ganze Nacht über dem Fluss.",
    ]
    answers = {"p": [(text, float(i), "stop") for i, text in enumerate(texts)]}
    found, _, _ = outcome(asking(languages=["en"]), *table(answers))
    assert found.dropped_samples.select("sample_id", "reason").rows() == [("1-p", "other language")]


def test_a_prompt_outside_the_band_of_pass_rates_makes_no_pair():
    rates = {
        "none": [0.0, 0.1, 0.2, 0.3],
        "half": [0.0, 0.9, 0.1, 0.8],
        "all": [0.6, 0.7, 0.8, 0.9],
    }
    answers = {p: [(f"{s}", s, "stop") for s in scores] for p, scores in rates.items()}
    cfg = config("best_worst", "pair.filters.pass_rate={threshold: 0.5, min: 0.25, max: 0.75}")
    found, kept, _ = outcome(cfg, *table(answers))
    assert kept["prompt_id"].to_list() == ["half"]
    assert set(found.dropped_prompts["reason"]) == {"pass rate outside the band"}
    assert selection.count_ties(cfg, found.prompts) == {"prompts": 0, "all_easy": 1, "all_hard": 1}


def test_prompts_that_all_answers_solve_or_none_are_counted():
    answers = {
        "easy": [("a", 1.0, "stop"), ("b", 1.0, "stop")],
        "hard": [("a", 0.0, "stop"), ("b", 0.0, "stop")],
    }
    answers |= {"even": [("a", 0.5, "stop"), ("b", 0.5, "stop")]}
    found, kept, _ = outcome(config("best_worst"), *table(answers))
    assert not kept.height and selection.count_ties(config("best_worst"), found.prompts) == {
        "prompts": 3,
        "all_easy": 1,
        "all_hard": 1,
    }


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────


def test_a_repeated_answer_goes_and_the_smallest_id_stays():
    rows = pl.DataFrame(
        {"p": [0, 0, 0, 1], "sample_id": ["c", "a", "b", "d"], "completion": ["x", "x", "y", "x"]}
    )
    assert duplicates.find_repeats(rows, np.array([0, 1, 2, 3])).tolist() == [0]
    assert duplicates.find_repeats(rows, np.array([0, 2, 3])).tolist() == []


@thoroughly
@given(st.lists(st.tuples(st.integers(0, 2), st.text("ab", max_size=14)), max_size=12))
def test_every_repeated_answer_of_a_prompt_is_found(drawn):
    """Also among those that are as long and begin alike."""
    rows = pl.DataFrame(
        sorted(drawn), schema={"p": pl.UInt32, "completion": pl.String}, orient="row"
    )
    rows = rows.with_columns(sample_id=pl.int_range(pl.len()).cast(pl.String).str.zfill(2))
    again = ~rows.select(pl.struct("p", "completion").is_first_distinct()).to_series()
    assert (
        duplicates.find_repeats(rows, np.arange(rows.height)).tolist() == again.arg_true().to_list()
    )


def sentences(count: int, words: int, seed: int = 0) -> list[list[str]]:
    draw = np.random.default_rng(seed)
    return [[f"w{n}" for n in draw.integers(0, 5000, words)] for _ in range(count)]


def test_near_duplicates_are_found_and_others_are_left():
    made = sentences(300, 60)
    near = [
        [*words[:30], "changed", *words[31:]] for words in made[:40]
    ]  # 3 of 58 triples differ: overlap 0.90
    far = [
        [*words[:20], *sentences(1, 40, seed=9 + at)[0]] for at, words in enumerate(made[:40])
    ]  # overlap 0.2
    texts = pl.Series([" ".join(words) for words in [*made, *near, *far]])
    found = minhash.find_nearest_above(texts, 0.8) >= 0
    assert not found[:300].any() and found[300:340].mean() > 0.9 and not found[340:].any()


def test_an_overlap_is_counted_as_by_hand():
    """Word triples, each once, whatever their case: shared ones of all that either text has."""
    pairs = [
        ("a b c d e", "A, b c! d f", 2 / 4),  # abc bcd cde · abc bcd cdf
        ("a b c", "d e f", 0.0),
        ("one two", "one two", 1.0),  # shorter than a triple: the text is one run
        ("one two", "one", 0.0),
        ("a a a a a a", "a a a", 1.0),
        ("", "a b c", 0.0),
        ("", "", 1.0),
    ]
    one, other, told = zip(*pairs, strict=True)
    assert minhash.count_overlap(pl.Series(one), pl.Series(other)).tolist() == list(told)


def longer(words: list[str], by: int, name: str) -> str:
    """Each word that is added adds one triple: of n words n - 2 are shared."""
    return " ".join([*words, *(f"{name}{at}" for at in range(by))])


def test_texts_just_below_the_threshold_are_left_and_those_at_it_are_found():
    """An estimate from 128 permutations drops some of those that truly overlap by 25 of 30 =
    0.833."""
    below, at = sentences(2400, 27), sentences(200, 29, seed=1)
    texts = [" ".join(words) for words in below] + [longer(words, 5, "more") for words in below]
    assert not (minhash.find_nearest_above(pl.Series(texts), 0.9) >= 0).any()
    texts = [" ".join(words) for words in at] + [
        longer(words, 3, "more") for words in at
    ]  # 27 of 30: just near
    assert minhash.find_nearest_above(pl.Series(texts), 0.9).tolist() == [-1] * 200 + list(
        range(200)
    )
    answers = pl.DataFrame({"one": texts[:200], "other": texts[200:]})
    for least, near in ((0.9, 200), (0.901, 0)):
        assert (
            answers.select(duplicates.is_near_duplicate("one", "other", least)).to_series().sum()
            == near
        )


def test_of_several_near_texts_the_first_is_named():
    words = sentences(1, 60)[0]
    texts = pl.Series(["else", *(longer(words, by, "more") for by in (0, 1, 2, 3))])
    assert minhash.find_nearest_above(texts, 0.9).tolist() == [-1, -1, 1, 1, 1]


def test_near_duplicates_do_not_hang_on_batches(monkeypatch):
    texts = pl.Series([" ".join(words) for words in sentences(50, 20)] * 2 + ["", "one", "one two"])
    whole = minhash.find_nearest_above(texts, 0.9) >= 0
    monkeypatch.setattr(minhash, "BATCH", 7)
    assert np.array_equal(whole, minhash.find_nearest_above(texts, 0.9) >= 0) and whole.sum() == 50


def test_near_filters_name_both_kinds():
    long = " ".join(sentences(1, 60)[0])
    rows = [
        PAIR
        | {
            "prompt_id": "a",
            "prompt_text": "",
            "chosen_text": long,
            "rejected_text": long + " and",
        },
        PAIR | {"prompt_id": "b", "prompt_text": "", "chosen_text": long + " too"},
        PAIR | {"prompt_id": "c", "prompt_text": "", "chosen_text": long + " too"},
        PAIR | {"prompt_id": "d", "prompt_text": "another", "chosen_text": "something else"},
    ]
    kept, dropped = selection.filter_pairs(asking(near_duplicate_threshold=0.9), pl.DataFrame(rows))
    assert dropped.select("prompt_id", "reason").rows() == [
        ("a", "nearly equal answers"),
        ("c", "near another pair"),
    ]
    assert kept["prompt_id"].to_list() == ["b", "d"]


def test_a_pair_that_repeats_another_prompt_and_both_answers_goes():
    rows = [PAIR | {"prompt_id": p} for p in "abc"]
    rows[2] |= {"rejected_text": "never"}
    _, dropped = selection.filter_pairs(asking(repeats=True), pl.DataFrame(rows))
    assert dropped.select("prompt_id", "reason").rows() == [("b", "repeated pair")]
