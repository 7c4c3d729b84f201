"""Pairs: every sample, prompt and pair accounted for, joins by id, never a pair without a
difference."""

import json
import math
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import Logps, Model, Pairs, Prompts, Samples, Scores, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.errors import UserError
from pipeline.stages import offline
from pipeline.stages.pair import run
from tests.support.house import composed
from tests.support.tiny import tiny_model


@cache
def config(*words: str):
    return composed(
        "recipes=smoke", "pair.dev={share: 0.1, min: 0, max_share: 0.5}", *words
    ).pair.for_round(1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "abc", layers=1)


@pytest.fixture(scope="module")
def chat(policy) -> ModelTokenizer:
    return ModelTokenizer(policy)


@pytest.fixture
def paired(tmp_path, policy, chat):
    """The stage on `prompt → [(text, score, finish)]`, sampled as this policy writes."""

    def pair(
        answers: dict, *words: str, details: dict | None = None, more: list | None = None, **edges
    ) -> Pairs:
        samples, scores = drawn(tmp_path / "in", chat, answers, details or {}, more or [])
        edges = {"policy": policy, "samples": [samples], "scores": [scores], **edges}
        return run(config(*words), tmp_path / "out", **edges)

    return pair


def drawn(
    folder: Path, chat: ModelTokenizer, answers: dict[str, list], details: dict, more: list
) -> tuple[Samples, Scores]:
    """Two shards of each; the scores of the second before those of the first."""
    samples, scores = [], list(more)
    for prompt, texts in answers.items():
        for index, (text, score, finish) in enumerate(texts):
            name = f"{prompt}-{index}"
            samples.append(sample_row(chat, prompt, name, text, finish))
            scores.append(score_row(prompt, name, score, details.get(name, "")))
    for shard in range(2):
        write_table(
            folder / "a" / "samples" / f"{shard:05d}.parquet",
            pl.DataFrame(samples[shard::2], schema=SAMPLE),
        )
        rows = pl.DataFrame(scores[::-1][shard::2], schema=SCORE)
        write_table(folder / "b" / "scores" / f"{shard:05d}.parquet", rows)
    return Samples(folder / "a"), Scores(folder / "b")


def sample_row(chat: ModelTokenizer, prompt: str, name: str, text: str, finish: str) -> dict:
    messages = [{"role": "user", "content": f"about {prompt}"}]
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "prompt_id": prompt,
        "sample_id": name,
        "prompt": messages,
        "completion": text,
        "prompt_token_ids": chat.encode(messages, {}),
        "token_ids": [*ids, *chat.stop_ids] if finish == "stop" else ids,
        "finish_reason": finish,
        "setting": "draw",
    }


def score_row(
    prompt: str, name: str, score: float | None, detail: str = "", scorer: str = "rules"
) -> dict:
    row = {"sample_id": name, "prompt_id": prompt, "scorer": scorer, "score": score}
    return {**row, "status": "failed" if score is None else "ok", "detail": detail}


MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
SAMPLE = {
    **dict.fromkeys(
        ("prompt_id", "sample_id", "completion", "finish_reason", "setting"), pl.String
    ),
    "prompt": pl.List(MESSAGE),
    "prompt_token_ids": pl.List(pl.Int64),
    "token_ids": pl.List(pl.Int64),
}
SCORE = {
    **dict.fromkeys(("sample_id", "prompt_id", "scorer", "status", "detail"), pl.String),
    "score": pl.Float64,
}
GOOD_AND_BAD = [("a good one", 1.0, "stop"), ("a bad one", 0.0, "stop")]


def all_pairs(pairs: Pairs) -> pl.DataFrame:
    return pl.concat([pairs.read_train(), pairs.read_dev()]).sort("prompt_id")


def reasons(pairs: Pairs) -> dict[str, str]:
    """prompt or sample → the reason why it was dropped."""
    return {
        row["sample_id"] or row["prompt_id"]: row["reason"]
        for row in pairs.read_dropped().iter_rows(named=True)
    }


def test_best_against_worst_with_the_sampler_s_own_tokens(paired, chat):
    pairs = paired({"p": [("mid", 0.5, "stop"), ("good", 1.0, "stop"), ("bad", 0.0, "stop")]})
    row = all_pairs(pairs).row(0, named=True)
    assert (row["chosen_id"], row["rejected_id"], row["margin"]) == ("p-1", "p-2", 1.0)
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]
    expected = {
        s: [*chat.tokenizer(s, add_special_tokens=False)["input_ids"], *chat.stop_ids]
        for s in ("good", "bad")
    }
    assert (row["chosen_token_ids"], row["rejected_token_ids"]) == (
        expected["good"],
        expected["bad"],
    )
    assert (
        row["prompt_token_ids"] == chat.encode(row["prompt"], {})
        and row["prompt"][0]["content"] == "about p"
    )


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
    answers = {
        "p": [("a", 0.4, "stop"), ("b", 0.5, "stop")],
        "q": [("a", 0.0, "stop"), ("b", 0.5, "stop")],
    }
    assert reasons(paired(answers, "pair.filters.min_margin=0.2")) == {"p": "margin too small"}


def test_truncated_answers_are_allowed_when_asked(paired):
    answers = {"p": [("a", 0.4, "length"), ("b", 0.5, "stop")]}
    assert all_pairs(paired(answers, "pair.filters.allow_truncated=true")).height == 1


def test_no_pair_at_all_is_refused_with_the_counts(paired):
    with pytest.raises(UserError, match=r"no pair is left of 2 samples for 1 prompt:\n  tie: 1"):
        paired({"tied": [("a", 0.5, "stop"), ("b", 0.5, "stop")]})


def test_scores_of_another_sampling_run_are_refused(tmp_path, policy, chat):
    samples, _ = drawn(tmp_path / "one", chat, {"p": GOOD_AND_BAD}, {}, [])
    _, scores = drawn(tmp_path / "two", chat, {"q": GOOD_AND_BAD}, {}, [])
    with pytest.raises(UserError, match="samples that are not here, such as q-"):
        run(config(), tmp_path / "out", policy=policy, samples=[samples], scores=[scores])


def test_train_and_dev_are_split_by_prompt(paired):
    answers = {f"p{i}": [("a", 0.0, "stop"), ("b", 1.0, "stop")] for i in range(100)}
    pairs = paired(answers, "pair.dev={share: 0.02, min: 20, max_share: 0.1}")
    assert (pairs.read_train().height, pairs.read_dev().height) == (90, 10)
    assert not set(pairs.read_train()["prompt_id"]) & set(pairs.read_dev()["prompt_id"])
    unpaired = pl.read_parquet(pairs.path / "unpaired.parquet")
    assert unpaired["label"].value_counts(sort=True)["count"].to_list() == [100, 100]


# ── demonstrations, ties, signs of noise ──────────────────────────────────────────────────────────


def test_the_gold_answer_against_the_worst_sample(tmp_path, paired, chat):
    columns = {"p": {"answer": "the gold answer"}, "q": {"answer": "a bad one"}, "r": {}}
    rows = [{"prompt_id": p, "prompt": [], "columns": json.dumps(c)} for p, c in columns.items()]
    write_table(
        tmp_path / "prompts" / "prompts.parquet",
        pl.DataFrame(rows, schema_overrides={"prompt": pl.List(MESSAGE)}),
    )
    prompts = Prompts(tmp_path / "prompts")
    pairs = paired(dict.fromkeys("pqr", GOOD_AND_BAD), "pair=demonstration", prompts=prompts)
    [row] = all_pairs(pairs).to_dicts()
    assert (row["chosen"][0]["content"], row["rejected_id"], row["origin"]) == (
        "the gold answer",
        "p-1",
        "demonstration",
    )
    assert (
        row["chosen_token_ids"] == chat.encode_answer(row["prompt"], "the gold answer", {})
        and row["margin"] is None
    )
    assert reasons(pairs) == {"q": "equal answers", "r": "no demonstration"}


def test_ties_are_kept_both_ways_when_asked(paired):
    pairs = paired(
        {"p": [("a", 0.5, "stop"), ("b", 0.5, "stop"), ("c", 0.5, "stop")]}, "pair.ties=both"
    )
    both = all_pairs(pairs).select("chosen_id", "rejected_id", "margin").rows()
    assert sorted(both) == [("p-0", "p-1", 0.0), ("p-1", "p-0", 0.0)]


def test_noise_is_estimated_from_scorers_annotators_and_flips(paired):
    answers = {f"p{i}": GOOD_AND_BAD for i in range(10)}
    more = [
        score_row(p, f"{p}-{i}", float(i if n < 2 else -i), scorer="judge")
        for n, p in enumerate(answers)
        for i in (0, 1)
    ]
    more += [{**row, "scorer": "rules/part"} for row in more]  # a criterion is no second opinion
    told = {"flip_rate": 0.3, "annotators": [1, 2, 3, 4]}
    details = {f"{p}-0": json.dumps(told) for p in answers}
    details |= {f"{p}-1": json.dumps(told | {"annotators": [0, 1, 2, 5]}) for p in answers}
    noise = paired(answers, details=details, more=more).read_funnel()["noise"]
    assert noise["scorers"] == pytest.approx((1 - 0.6**0.5) / 2, abs=1e-3)  # 2 of 10 disagree
    assert noise["flips"] == pytest.approx((1 - 0.4**0.5) / 2, abs=1e-3)
    assert (
        noise["annotators"] == 0.5
    )  # 3 of 4 prefer the first: two of them differ with probability a half
    assert noise["suggested_label_smoothing"] == {"cdpo": 0.49, "robust_dpo": 0.49}


def test_the_waves_of_a_round_are_one_set_of_candidates(tmp_path, policy, chat):
    """And a wave that drew nothing is read like any other; ties are counted after the last one."""
    answers = {
        "p": GOOD_AND_BAD,
        "tied": [("a", 1.0, "stop")] * 2,
        "still": [("a", 0.0, "stop")] * 2,
    }
    first = drawn(tmp_path / "0", chat, answers, {}, [])
    second = drawn(
        tmp_path / "1", chat, {"tied": [("b", 0.0, "stop")], "still": [("b", 0.0, "stop")]}, {}, []
    )
    for part, kind in (("a/samples", SAMPLE), ("b/scores", SCORE)):
        for file in (tmp_path / "1" / part).glob("*.parquet"):
            renamed = pl.concat_str(pl.lit("wave-1-"), "sample_id").alias("sample_id")
            write_table(file, pl.read_parquet(file).with_columns(renamed))
        write_table(tmp_path / "2" / part / "00000.parquet", pl.DataFrame(schema=kind))
    third = Samples(tmp_path / "2" / "a"), Scores(tmp_path / "2" / "b")
    samples, scores = zip(first, second, third, strict=True)
    pairs = run(
        config(), tmp_path / "out", policy=policy, samples=list(samples), scores=list(scores)
    )
    told = all_pairs(pairs).select("prompt_id", "rejected_id").rows()
    assert told == [("p", "p-1"), ("tied", "wave-1-tied-0")]
    assert (pairs.read_funnel()["samples_in"], pairs.read_funnel()["waves"]) == (8, [6, 2, 0])
    assert pairs.read_funnel()["ties"] == {"prompts": 1, "all_easy": 0, "all_hard": 1}


def test_little_noise_suggests_no_smoothing_and_no_sign_no_estimate(paired):
    assert paired({"p": GOOD_AND_BAD}).read_funnel()["noise"]["estimate"] is None


def test_filters_on_signs_use_what_the_scores_say(paired):
    answers = dict.fromkeys("pqr", GOOD_AND_BAD)
    details = {f"p-{i}": '{"flip_rate": 0.6}' for i in (0, 1)} | {
        "q-0": "the judge said {",
        "q-1": '{"flip_rate',
    }
    more = [score_row("r", f"r-{i}", float(i), scorer="judge") for i in (0, 1)]
    words = "pair.filters.max_flip_rate=0.5", "pair.filters.max_disagreement=0.5"
    pairs = paired(answers, *words, details=details, more=more)
    assert reasons(pairs) == {"p": "judge flips", "r": "scorers disagree"}
    filters = pairs.read_funnel()["filters"]
    assert (filters["judge flips"], filters["scorers disagree"], filters["near another pair"]) == (
        1,
        1,
        "not asked",
    )


# ── how much better chosen is ─────────────────────────────────────────────────────────────────────


def strength(pairs: Pairs) -> dict[str, tuple]:
    """`prompt → margin, p_chosen, weight`."""
    columns = all_pairs(pairs).select("prompt_id", "margin", "p_chosen", "weight")
    return {row[0]: row[1:] for row in columns.rows()}


def test_the_probability_is_the_judge_s_the_votes_or_the_scores(paired):
    """A judge's verdict on the two and votes come first; scores by Bradley and Terry else."""
    answers = {
        "judged": [("a b", 0.9, "stop"), ("c d", 0.2, "stop"), ("e f", 0.5, "stop")],
        "voted": [("a b", 0.75, "stop"), ("c d", 0.25, "stop")],
        "scored": [("a b", 3.0, "stop"), ("c d", 1.0, "stop")],
    }
    details = {
        "judged-0": json.dumps({"flip_rate": 0.0, "wins": {"judged-1": 0.8, "judged-2": 0.7}}),
        "voted-0": json.dumps({"annotators": [1.0, 1.0, None, 0.0]}),
        "voted-1": json.dumps({"annotators": [0.0, 0.0, None, 1.0]}),
    }
    found = strength(paired(answers, "pair.score_scale=2", details=details))
    logistic = 1 / (1 + math.exp(-1))
    expected = {"judged": 0.8, "voted": 2 / 3, "scored": logistic}
    assert {name: row[1] for name, row in found.items()} == pytest.approx(expected)
    assert {row[2] for row in found.values()} == {None}  # no weight is asked for


def test_without_a_scale_scores_alone_tell_no_probability(paired):
    found = paired({"p": GOOD_AND_BAD}, "pair.score_scale=null")
    assert strength(found)["p"][1:] == (None, None)
    assert "p_chosen" not in found.read_funnel()["histograms"]


@pytest.mark.parametrize(
    ("weight", "expected"),
    [("margin", {"p": 0.5, "q": 1.5}), ("confidence", {"p": 0.462117, "q": 0.905148})],
)
def test_the_weight_is_the_margin_over_its_mean_or_the_probability_s_distance(
    paired, weight, expected
):
    answers = {
        "p": [("a b", 1.0, "stop"), ("c d", 0.0, "stop")],
        "q": [("a b", 2.5, "stop"), ("c d", -0.5, "stop")],
    }
    pairs = paired(answers, f"pair.weight={weight}")
    assert {p: row[2] for p, row in strength(pairs).items()} == pytest.approx(expected, abs=1e-6)
    funnel = pairs.read_funnel()
    assert funnel["weight"]["most"] == pytest.approx(expected["q"], abs=1e-6)
    histogram = funnel["histograms"]["weight"]
    assert histogram["edges"][:2] == {"margin": [0.5, 0.6], "confidence": [0.45, 0.5]}[weight]
    assert sum(histogram["pairs"]) == 2 and histogram["pairs"][0] == histogram["pairs"][-1] == 1


def test_what_a_person_swapped_is_sure_and_weighs_one(paired, tmp_path):
    line = {"action": "swap", "prompt_id": "p", "chosen_id": "p-0", "rejected_id": "p-1"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line) + "\n")
    words = f"pair.edits.1={tmp_path / 'edits.jsonl'}", "pair.weight=confidence"
    details = {"p-0": json.dumps({"wins": {"p-1": 0.8}})}
    found = strength(paired(dict.fromkeys("pq", GOOD_AND_BAD), *words, details=details))
    assert found["p"] == (None, 1.0, 1.0), "no margin: the scores say the opposite"
    assert None not in found["q"]


# ── funnel and card ───────────────────────────────────────────────────────────────────────────────


def test_the_funnel_tells_where_everything_went(paired, capsys):
    answers = {
        f"p{i}": [("a good one", 1.0, "stop"), ("a", i / 100, "stop"), ("b", None, "stop")]
        for i in range(30)
    }
    pairs = paired(answers, "pair.filters.min_margin=0.75")
    funnel = pairs.read_funnel()
    assert (funnel["samples_in"], funnel["candidates"], funnel["dropped_samples"]) == (
        90,
        60,
        {"no score": 30},
    )
    assert (funnel["prompts_in"], funnel["pairs_in"], funnel["pairs"]) == (30, 30, 26)
    assert funnel["dropped_pairs"] == {"margin too small": 4}
    assert {name: len(rows) for name, rows in funnel["examples"].items()} == {
        "most_certain": 7, "least_certain": 7, "longest_gap": 6,
    }  # fmt: skip
    assert (
        funnel["examples"]["most_certain"][0]["prompt_id"] == "p0"
        and funnel["length_score_correlation"] > 0.9
    )
    screen = [line for line in capsys.readouterr().err.splitlines() if line.startswith("│ ")]
    assert any("− margin too small" in line and line.endswith(" 4") for line in screen)
    assert "− no score" in (pairs.path / "README.md").read_text()


def test_all_samples_become_thumbs_when_asked(paired):
    answers = {
        "p": [("a", 0.0, "stop"), ("b", 0.4, "stop"), ("c", 0.6, "stop"), ("d", 1.0, "stop")]
    }
    pairs = paired(answers, "pair.unpaired_threshold=0.5")
    table = pl.read_parquet(pairs.path / "unpaired.parquet")
    assert dict(table.select("sample_id", "label").rows()) == {
        "p-0": False,
        "p-1": False,
        "p-2": True,
        "p-3": True,
    }
    assert pairs.read_funnel()["unpaired"] == {"up": 2, "down": 2}


# ── contract before cost ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda row, chat: row["prompt_token_ids"].pop(2),
            r"the prompt's tokens differ .* in 1 of 1 pairs.*\n.*They part at 2",
        ),
        (
            lambda row, chat: row["prompt_token_ids"].insert(0, chat.bos),
            "the prompt begins with two BOS",
        ),
        (
            lambda row, chat: row["prompt_token_ids"].pop(0),
            r"the prompt's tokens differ .*\n.*They part at 0",
        ),
        (lambda row, chat: row["token_ids"].pop(), "chosen does not end with a stop token"),
        (
            lambda row, chat: row["token_ids"].insert(0, 40),
            "chosen's tokens do not read as its text",
        ),
    ],
)
def test_what_is_trained_must_be_what_was_sampled(tmp_path, policy, chat, change, said):
    rows = [
        sample_row(chat, "p", f"p-{i}", text, finish)
        for i, (text, _, finish) in enumerate(GOOD_AND_BAD)
    ]
    change(rows[0], chat)
    write_table(tmp_path / "a" / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))
    scores = [score_row("p", f"p-{i}", score) for i, (_, score, _) in enumerate(GOOD_AND_BAD)]
    write_table(tmp_path / "b" / "scores" / "0.parquet", pl.DataFrame(scores, schema=SCORE))
    inputs = {"samples": [Samples(tmp_path / "a")], "scores": [Scores(tmp_path / "b")]}
    with pytest.raises(UserError, match=said):
        run(config(), tmp_path / "out", policy=policy, **inputs)
    assert not (tmp_path / "out" / "train.parquet").exists()


def test_an_answer_with_a_bos_of_its_own_is_dropped_and_counted(tmp_path, policy, chat):
    rows = [sample_row(chat, "p", f"p-{i}", f"answer {i}", "stop") for i in range(3)]
    rows[2]["token_ids"].insert(1, chat.bos)
    write_table(tmp_path / "a" / "samples" / "0.parquet", pl.DataFrame(rows, schema=SAMPLE))
    scores = [score_row("p", f"p-{i}", float(i)) for i in range(3)]
    write_table(tmp_path / "b" / "scores" / "0.parquet", pl.DataFrame(scores, schema=SCORE))
    inputs = {"samples": [Samples(tmp_path / "a")], "scores": [Scores(tmp_path / "b")]}
    pairs = run(config(), tmp_path / "out", policy=policy, **inputs)
    assert reasons(pairs) == {"p-2": "second BOS"}
    assert all_pairs(pairs).select("chosen_id", "rejected_id").rows() == [("p-1", "p-0")]


def test_another_template_than_the_sampler_s_stops_here(tmp_path, paired):
    from tests.support.tiny import CHAT

    other = CHAT.replace("<|{{ m.role }}|>", "<|{{ m.role }}|> ")
    model = tiny_model(tmp_path / "store" / "sft" / "other", template=other, layers=1)
    with pytest.raises(UserError, match=r"the prompt's tokens differ from its template's"):
        paired({"p": GOOD_AND_BAD}, policy=model)


# ── offline rows and their mix ────────────────────────────────────────────────────────────────────


def offline_rows(folder: Path, chat: ModelTokenizer, count: int, **changes) -> Pairs:
    rows = []
    for n in range(count):
        prompt = [{"role": "user", "content": f"offline {n}"}]
        row = {
            "prompt": prompt,
            "prompt_id": f"o{n}",
            "prompt_token_ids": chat.encode(prompt, {}),
            "origin": "offline",
        }
        for side, text in (("chosen", f"good {n}"), ("rejected", f"bad {n}")):
            row |= {
                side: [{"role": "assistant", "content": text}],
                f"{side}_id": f"o{n}-{side}",
                f"{side}_score": None,
            }
            row[f"{side}_token_ids"] = chat.encode_answer(prompt, text, {})
        rows.append({**row, "margin": None, **changes})
    table = pl.DataFrame(rows, schema=offline.PAIR)
    write_table(folder / "train.parquet", table)
    write_table(folder / "dev.parquet", table.clear())
    write_table(folder / "unpaired.parquet", pl.DataFrame(schema=offline.UNPAIRED))
    return Pairs(folder)


MIXED = (
    "offline=file",
    "offline.source.path=x",
    "pair.mix={on_policy: 0.5, offline: 0.5, per_round: 20}",
)


def test_a_mix_takes_its_shares_and_every_round_its_own_block(tmp_path, policy, chat):
    rows, seen = offline_rows(tmp_path / "offline", chat, 40), []
    answers = {f"p{i}": GOOD_AND_BAD for i in range(15)}
    samples, scores = drawn(tmp_path / "in", chat, answers, {}, [])
    for number in (1, 2):
        cfg = composed("recipes=smoke", *MIXED).pair.for_round(number)
        inputs = {"samples": [samples], "scores": [scores], "offline": rows}
        pairs = run(cfg, tmp_path / f"out-{number}", policy=policy, **inputs)
        assert pairs.read_funnel()["origin"] == {"offline": 15, "on-policy": 15}
        assert pairs.read_funnel()["dropped_pairs"] == {"not needed by the mix": 5}
        block = pl.concat([all_pairs(pairs)["prompt_id"], pairs.read_dropped()["prompt_id"]])
        seen += [name for name in block if name.startswith("o")]
    assert len(seen) == len(set(seen)) == 40


def test_a_mix_that_asks_for_more_than_there_is_says_so(tmp_path, paired, chat):
    answers = {f"p{i}": GOOD_AND_BAD for i in range(30)}
    with pytest.raises(
        UserError,
        match="a share of 0.5 for 30 pairs of the policy's own asks for 30 offline pairs, and"
        " the filters leave 20",
    ):
        paired(answers, *MIXED, offline=offline_rows(tmp_path / "offline", chat, 20))
    with pytest.raises(UserError, match="round 1 needs 20 offline rows, and there are 9"):
        paired(answers, *MIXED, offline=offline_rows(tmp_path / "offline", chat, 9))


ALONE = "offline=file", "offline.source.path=x", "pair.mix={on_policy: 0, offline: 1}", "rounds=1"


def test_offline_alone_needs_no_samples_and_passes_the_same_filters(tmp_path, policy, chat):
    rows = offline_rows(tmp_path / "offline", chat, 20)
    logps = [
        {"sample_id": f"o{n}-{s}", "prompt_id": f"o{n}", "logp": -float(n), "tokens": 2}
        for n in range(20)
        for s in ("chosen", "rejected")
    ]
    write_table(tmp_path / "prior" / "logps.parquet", pl.DataFrame(logps))
    cfg = config(*ALONE, "pair.filters.min_reference=-5")
    pairs = run(cfg, tmp_path / "out", policy=policy, offline=rows, prior=Logps(tmp_path / "prior"))
    assert set(all_pairs(pairs)["prompt_id"]) == {f"o{n}" for n in range(11)}
    assert pairs.read_funnel()["dropped_pairs"] == {"unlikely under the reference": 9}


def test_offline_rows_keep_their_own_probability_and_weight(tmp_path, policy, chat):
    rows = offline_rows(tmp_path / "offline", chat, 4, p_chosen=0.7, weight=2.0)
    pairs = run(config(*ALONE, "pair.weight=rows"), tmp_path / "out", policy=policy, offline=rows)
    assert set(strength(pairs).values()) == {(None, 0.7, 2.0)}


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────

HAND = dict.fromkeys("pqrst", GOOD_AND_BAD)


@pytest.fixture
def edited(tmp_path, paired):
    def edit(*lines: dict, answers: dict = HAND) -> Pairs:
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return paired(answers, f"pair.edits.1={file}")

    return edit


def line(action: str, prompt: str, **more: str) -> dict:
    return {
        "action": action,
        "prompt_id": prompt,
        "chosen_id": f"{prompt}-0",
        "rejected_id": f"{prompt}-1",
        **more,
    }


def test_edits_keep_drop_swap_and_replace_by_id(edited, chat):
    pairs = edited(
        line("keep", "p"),
        line("drop", "q", why="unclear"),
        line("swap", "r"),
        line("replace", "s", chosen="by hand"),
    )
    rows = {row["prompt_id"]: row for row in all_pairs(pairs).to_dicts()}
    assert set(rows) == set("prst") and reasons(pairs) == {"q": "dropped by hand"}
    assert (rows["r"]["chosen_id"], rows["r"]["rejected_id"], rows["r"]["margin"]) == (
        "r-1",
        "r-0",
        None,
    )
    assert rows["r"]["chosen"][0]["content"] == "a bad one" and rows["r"]["chosen_score"] == 0.0
    assert (rows["s"]["origin"], rows["s"]["rejected_id"]) == ("edited", "s-1")
    assert rows["s"]["chosen_token_ids"] == chat.encode_answer(rows["s"]["prompt"], "by hand", {})
    assert pairs.read_funnel()["origin"] == {"edited": 1, "on-policy": 3}


def test_an_edited_answer_can_be_put_over_the_one_that_it_was_made_of(tmp_path, paired):
    file = tmp_path / "pairs.jsonl"
    lines = line("replace", "p", chosen="by hand"), line("replace", "q", rejected="worse")
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    pairs = paired(HAND, f"pair.edits.1={file}", "pair.rank_edits=true")
    ranked = all_pairs(pairs).filter(prompt_id="p")
    texts = {
        (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in ranked.to_dicts()
    }
    assert texts == {
        ("by hand", "a good one"),
        ("by hand", "a bad one"),
        ("a good one", "a bad one"),
    }
    assert all_pairs(pairs).filter(prompt_id="q").height == 1, "a rejected answer replaces its own"
    funnel = pairs.read_funnel()
    assert (funnel["pairs_in"], funnel["pairs"]) == (7, 7)
    over = ranked.filter(pl.col("rejected_id") == "p-0")
    assert over["rejected_score"].to_list() == [1.0] and over["margin"].to_list() == [None]


def test_what_the_model_wrote_comes_back_as_it_is(edited):
    odd = {"p": [("a\0b", 1.0, "stop"), ("a bad one", 0.0, "stop")]}
    pairs = edited(line("swap", "p", chosen="a\0b", rejected="a bad one"), answers=HAND | odd)
    assert {row["prompt_id"]: row["chosen_id"] for row in all_pairs(pairs).to_dicts()}["p"] == "p-1"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line("drop", "nobody")], "line 1: no pair has chosen_id nobody-0"),
        ([line("erase", "p")], "action 'erase'.*Known: drop, keep, replace, swap"),
        ([line("keep", "p", chosen="another text")], 'Write "action": "replace"'),
        ([line("replace", "p", chosen="a bad one")], "chosen and rejected would be the same text"),
        ([line("replace", "p")], "replace needs a new text"),
        ([{"action": "drop"}], "no chosen_id, rejected_id"),
        ([line("replace", "p", chosen="a\0b")], "line 1: holds a NUL character"),
        ([line("drop", "p"), line("swap", "p")], "line 2: no pair has"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused(edited, lines, said):
    with pytest.raises(UserError, match=said):
        edited(*lines)


def test_edits_hold_for_their_own_round_and_leave_the_others_as_they_are(tmp_path):
    """Else round 1 would be made again, and with it the samples that round 2's edits name."""
    file = tmp_path / "pairs.jsonl"
    two = "recipes=smoke", "rounds=2", "sample.per_round=24"
    pair = composed(*two, f"pair.edits.2={file}").pair
    assert pair.for_round(1) == composed(*two).pair.for_round(1)
    assert pair.for_round(2).edits == str(file)
    with pytest.raises(UserError, match=r"write pair.edits.1=f.jsonl"):
        composed(*two, "pair.edits=f.jsonl")
    with pytest.raises(UserError, match=r"pair.edits.3: there is no round 3, since rounds=2"):
        composed(*two, "pair.edits.3=f.jsonl")


def test_one_sample_a_prompt_and_no_scores_at_all_leave_no_pair(paired):
    with pytest.raises(
        UserError, match=r"no pair is left of 2 samples for 2 prompts:\n  one usable sample: 2"
    ):
        paired(dict.fromkeys("pq", GOOD_AND_BAD[:1]))
    with pytest.raises(UserError, match=r"\n  no score: 2\n  no usable sample: 1"):
        paired({"p": [("a", None, "stop"), ("b", None, "stop")]})
