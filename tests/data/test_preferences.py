"""Offline preferences: every published shape to the exact token ids, every row accounted for, bad
rows named."""

import json
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from pipeline.artifacts import Decontamination, Pairs, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.data import decontamination as fencing
from pipeline.errors import UserError
from pipeline.pairing.token_checks import check_pairs
from pipeline.stages import offline
from tests.support.house import composed
from tests.support.tiny import tiny_model
from tests.support.tools import (
    TOOL_CHAT,
    WEATHER,
    answering,
    ask,
    call,
    calling,
    result,
    write_call,
)

QUESTIONS = [f"name {n} short facts about the quiet river" for n in range(10)]
GOOD = [f"{n} : the river and the lantern." for n in range(10)]
BAD = [f"{n} without facts" for n in range(10)]
SYSTEM = "three sentences"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "abc", layers=1)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def turn(speaker: str, text: str) -> dict:
    return {"from": speaker, "value": text}


def told(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def rows(shape: str) -> list[dict]:
    """Ten rows as published under each shape, all with the same questions and answers."""
    made = []
    for q, c, r in zip(QUESTIONS, GOOD, BAD, strict=True):
        made.append(
            {
                "standard": {"prompt": q, "chosen": c, "rejected": r},
                "conversational": {"prompt": user(q), "chosen": said(c), "rejected": said(r)},
                "implicit": {"chosen": user(q) + said(c), "rejected": user(q) + said(r)},
                "ultrafeedback": {
                    "prompt": q,
                    "prompt_id": "x",
                    "chosen": user(q) + said(c),
                    "rejected": user(q) + said(r),
                    "messages": user(q) + said(c),
                    "score_chosen": 8.5,
                    "score_rejected": 4.0,
                },
                "argilla": {
                    "source": "flan",
                    "instruction": q,
                    "chosen_response": c,
                    "rejected_response": r,
                    "chosen_avg_rating": 8.5,
                    "rejected_avg_rating": 4.0,
                },
                "intel": {"system": "", "question": q, "chosen": c, "rejected": r},
                "intel with system": {"system": SYSTEM, "question": q, "chosen": c, "rejected": r},
                "hh": {"chosen": told(q, c), "rejected": told(q, r)},
                "simpo": {
                    "prompt": q,
                    "all_generated_responses": ["x", c, r],
                    "all_rm_scores": [5.0, 8.5, 4.0],
                },
                "online-rlhf": {"prompt": q, "responses": [r, "x", c], "rewards": [4.0, None, 8.5]},
                "columns": {"frage": q, "gut": c, "schlecht": r},
                "llama-factory": {
                    "conversations": [turn("human", q)],
                    "chosen": turn("gpt", c),
                    "rejected": turn("gpt", r),
                },
                "llama-factory with system": {
                    "system": SYSTEM,
                    "conversations": [turn("human", q)],
                    "chosen": turn("gpt", c),
                    "rejected": turn("gpt", r),
                },
                "axolotl": {"messages": user(q), "chosen": said(c)[0], "rejected": said(r)[0]},
                "axolotl with texts": {"messages": user(q), "chosen": c, "rejected": r},
                "renamed turns": {
                    "talk": [turn("human", q)],
                    "better": turn("gpt", c),
                    "worse": turn("gpt", r),
                },
            }[shape]
        )
    return made


@cache
def composed_with(*words: str):
    alone = [
        "pair.mix={on_policy: 0, offline: 1}",
        "rounds=1",
        "offline=file",
        "offline.source.path=x",
    ]
    return composed("recipes=smoke", *alone, *words).offline


def config(path: Path, *words: str):
    cfg = composed_with(*words)
    return cfg.model_copy(update={"source": cfg.source.model_copy(update={"path": str(path)})})


@pytest.fixture
def taken(tmp_path, policy):
    def take(made: list[dict], *words: str, fenced: str = "nothing", policy=policy) -> Pairs:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in made))
        cfg = config(file, *words)
        table = fencing.ngram_table(fencing.hash_ngrams(fenced, cfg.decontamination.ngram))
        write_table(tmp_path / "decontamination" / "ngrams.parquet", table)
        return offline.run(
            cfg,
            tmp_path / "out",
            policy=policy,
            decontamination=Decontamination(tmp_path / "decontamination"),
        )

    return take


def golden(tokenizer, system: str = "") -> set[tuple]:
    """The very ids, put together by hand: <s> <|user|> … <|end|> <|assistant|> and the answer with
    its <|end|>."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    head = f"<s><|system|>{system}<|end|>" if system else "<s>"
    return {
        (ids(f"{head}<|user|>{q}<|end|><|assistant|>"), ids(f"{c}<|end|>"), ids(f"{r}<|end|>"))
        for q, c, r in zip(QUESTIONS, GOOD, BAD, strict=True)
    }


@pytest.fixture(scope="module")
def tokenizer(policy):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy.tokenizer)


SHAPES = [
    "standard",
    "conversational",
    "implicit",
    "ultrafeedback",
    "argilla",
    "intel",
    "intel with system",
    "hh",
    "simpo",
    "llama-factory",
    "llama-factory with system",
    "axolotl",
    "axolotl with texts",
]
WORDS = {
    "columns": [
        "offline.shape=columns",
        "offline.columns={prompt: frage, chosen: gut, rejected: schlecht}",
    ],
    "renamed turns": [
        "offline.shape=columns",
        "offline.columns={conversations: talk, chosen: better, rejected: worse}",
    ],
}
SCORED = {"ultrafeedback", "argilla", "simpo", "online-rlhf"}


@pytest.mark.parametrize("shape", [*SHAPES, "online-rlhf", *WORDS])
def test_each_shape_becomes_these_token_ids(taken, tokenizer, shape):
    table = taken(rows(shape), *WORDS.get(shape, [])).read_train()
    names = "prompt_token_ids", "chosen_token_ids", "rejected_token_ids"
    assert {tuple(tuple(ids) for ids in row) for row in table.select(names).rows()} == golden(
        tokenizer, SYSTEM if shape.endswith("with system") else ""
    )
    assert table["margin"].unique().to_list() == ([4.5] if shape in SCORED else [None])
    assert set(table["origin"]) == {"offline"}


def test_the_golden_ids_are_these(tokenizer):
    """One row written out, so that both sides of the comparison above cannot drift together."""
    shown = tokenizer.convert_ids_to_tokens(sorted(golden(tokenizer))[0][0])
    assert shown[:2] == ["<s>", "<|user|>"] and shown[-2:] == ["<|end|>", "<|assistant|>"]
    assert [ids.count(tokenizer.bos_token_id) for ids in sorted(golden(tokenizer))[0]] == [1, 0, 0]


def test_multi_turn_transcripts_keep_their_turns(taken):
    chosen = told("hi", "hello") + told("and now?", "this")
    [row] = (
        taken([{"chosen": chosen, "rejected": told("hi", "hello") + told("and now?", "that")}])
        .read_train()
        .to_dicts()
    )
    assert [m["role"] for m in row["prompt"]] == ["user", "assistant", "user"]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("this", "that")


def test_thumbs_become_unpaired_rows_with_class_counts(taken):
    made = [
        {"prompt": q, "completion": c, "label": n % 2 == 0}
        for n, (q, c) in enumerate(zip(QUESTIONS, GOOD, strict=True))
    ]
    pairs = taken(made[:9])
    assert pairs.read_train().height == 0 and pairs.read_funnel()["unpaired"] == {
        "up": 5,
        "down": 4,
    }
    table = pl.read_parquet(pairs.path / "unpaired.parquet")
    assert dict(
        table.select(pl.col("prompt").list.last().struct.field("content"), "label").rows()
    ) == {row["prompt"]: row["label"] for row in made[:9]}


def test_a_conversation_with_a_label_is_an_unpaired_answer(taken):
    made = [
        {"conversations": [turn("human", q), turn("gpt", c)], "label": n % 2 == 0}
        for n, (q, c) in enumerate(zip(QUESTIONS[:9], GOOD, strict=False))
    ]
    pairs = taken(made)
    assert pairs.read_funnel()["unpaired"] == {"up": 5, "down": 4}
    table = pl.read_parquet(pairs.path / "unpaired.parquet")
    prompts = table["prompt"].list.last().struct.field("content")
    assert dict(zip(prompts, table["label"], strict=True)) == {
        row["conversations"][0]["value"]: row["label"] for row in made
    }


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"chosen": turn("human", "a")}, "the last turn of chosen is not the assistant's"),
        ({"chosen": {"role": "assistant", "content": None}}, "chosen: a message is not"),
        ({"conversations": [turn("bird", "q")]}, "a turn is from bird"),
        ({"conversations": [turn("gpt", "q")]}, "the turn before the answer is not the user's"),
    ],
)
def test_a_turn_that_is_none_is_named(taken, row, fault):
    [good, *_] = rows("llama-factory")
    with pytest.raises(UserError, match=rf"read as conversation\):\n  row 2: .*{fault}"):
        taken([good, {**good, **row}])


# ── tools ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    return tiny_model(
        tmp_path_factory.mktemp("store") / "sft" / "abc",
        template=TOOL_CHAT,
        layers=1,
        context=1024,
    )


def one_pair(shape: str) -> dict:
    """A call over a text, after a question and a result, as published under each shape."""
    shared = [ask("Rome"), calling(call("Rome")), result("21"), answering("Yes."), ask("Oslo")]
    good, bad = calling(call("Oslo"), text="I look."), answering("No.")
    function = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    talk = [
        turn("human", "Is it warm in Rome?"),
        turn("function_call", json.dumps({**function, "arguments": {"city": "Rome"}})),
        turn("observation", "21"),
        turn("gpt", "Yes."),
        turn("human", "Is it warm in Oslo?"),
    ]
    row = {
        "trl": {"prompt": shared, "chosen": [good], "rejected": [bad]},
        "trl without a prompt": {"chosen": [*shared, good], "rejected": [*shared, bad]},
        "llama-factory": {"conversations": talk, "chosen": good, "rejected": turn("gpt", "No.")},
        "renamed": {"q": shared, "yes": [good], "no": [bad], "functions": [WEATHER]},
    }[shape]
    return row if shape == "renamed" else {**row, "tools": json.dumps([WEATHER])}


RENAMED = "offline.columns={prompt: q, chosen: yes, rejected: no, tools: functions}"


@pytest.mark.parametrize("shape", ["trl", "trl without a prompt", "llama-factory", "renamed"])
def test_tools_become_the_tokens_of_the_policy_s_own_template(taken, caller, shape):
    words = ["offline.shape=columns", RENAMED] if shape == "renamed" else []
    [row] = taken([one_pair(shape)], *words, policy=caller).read_train().to_dicts()
    chat = ModelTokenizer(caller)
    head = json.dumps(WEATHER)
    assert chat.decode_raw(row["prompt_token_ids"]) == (
        f"<s><|system|>{head}<|end|><|user|>Is it warm in Rome?<|end|><|assistant|>"
        f"{write_call('Rome')}<|end|><|user|><tool_response>21</tool_response><|end|>"
        "<|assistant|>Yes.<|end|><|user|>Is it warm in Oslo?<|end|><|assistant|>"
    )
    text = f"I look.{write_call('Oslo')}"
    assert chat.decode_raw(row["chosen_token_ids"]) == f"{text}<|end|>"
    assert row["chosen"] == said(text) and row["rejected"] == said("No.")
    assert [message["role"] for message in row["prompt"]] == [
        "tools", "user", "tool_calls", "tool", "assistant", "user",
    ]  # fmt: skip
    cfg = composed("recipes=smoke").pair.for_round(1)
    check_pairs(cfg, pl.DataFrame([row]), chat)


def test_an_answer_after_a_result_is_a_pair_and_one_before_it_is_not(taken, caller):
    before = [ask("Rome"), calling(call("Rome")), result("21")]
    good, bad = answering("It is warm."), answering("It is cold.")
    shared = {"chosen": [*before, good], "rejected": [*before, bad], "tools": [WEATHER]}
    early = {**shared, "rejected": [ask("Rome"), bad]}
    pairs = taken([shared, early], "offline.on_bad_row=skip", policy=caller)
    assert pairs.read_train().height == 1
    assert pairs.read_dropped()["detail"].to_list() == [
        "chosen and rejected differ before their last turn"
    ]


def test_calls_with_a_label_are_unpaired_answers(taken, caller):
    row = {"prompt": [ask("Rome")], "completion": [calling(call("Rome"))], "label": True}
    table = taken([{**row, "tools": [WEATHER]}], policy=caller).read_unpaired()
    assert table["completion"].to_list() == [said(write_call("Rome"))]


def test_a_template_without_tools_makes_a_bad_row(taken):
    made = [*rows("standard"), one_pair("trl")]
    with pytest.raises(UserError, match=r"row 11: .*it leaves out the tool get_weather"):
        taken(made)
    pairs = taken(made, "offline.on_bad_row=skip")
    assert pairs.read_train().height == 10 and pairs.read_funnel()["dropped"] == {"bad row": 1}


# ── faults ────────────────────────────────────────────────────────────────────────────────────────


def test_scores_become_thumbs_where_asked(taken):
    pairs = taken(rows("simpo"), "offline.unpaired_threshold=5")
    assert pairs.read_train().height == 10 and pairs.read_funnel()["unpaired"] == {
        "up": 20,
        "down": 10,
    }


def test_rows_that_overlap_an_evaluation_prompt_are_left_out(taken):
    pairs = taken(rows("standard"), "offline.decontamination.ngram=8", fenced=QUESTIONS[3])
    assert pairs.read_train().height == 9
    assert pairs.read_dropped().select("row", "reason").rows() == [(4, "overlap with evaluation")]
    assert (
        pairs.read_funnel()["dropped"] == {"overlap with evaluation": 1}
        and pairs.read_funnel()["out"] == 9
    )


@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
def test_a_text_with_a_bos_in_it_is_left_out(taken, side):
    made = [
        *rows("standard"),
        {"prompt": "q", "chosen": "a", "rejected": "b", side: "one <s> more"},
    ]
    pairs = taken(made)
    assert pairs.read_train().height == 10 and pairs.read_dropped().select(
        "row", "reason"
    ).rows() == [(11, "second BOS")]


def test_a_row_that_repeats_another_is_dropped_by_name(taken):
    pairs = taken([*rows("standard"), rows("standard")[2]])
    assert pairs.read_train().height == 10 and pairs.read_dropped().select(
        "row", "reason"
    ).rows() == [(11, "repeats an earlier row")]


@pytest.mark.parametrize(
    ("row", "said_of_it"),
    [
        (
            {"prompt": "q", "chosen": "same", "rejected": "same"},
            "chosen and rejected are the same text",
        ),
        ({"prompt": "q", "chosen": "  ", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "rejected is empty"),
        (
            {"chosen": user("q") + said("a") + user("more"), "rejected": user("q") + said("b")},
            "the last turn of chosen is not",
        ),
        (
            {"chosen": user("q") + said("a"), "rejected": user("p") + said("b")},
            "differ before their last turn",
        ),
        ({"prompt": "q", "chosen": "a"}, "no rejected"),
        (
            {"prompt": user("q") + said("a"), "chosen": "a", "rejected": "b"},
            "the turn before the answer is not the user's",
        ),
        (
            {"prompt": "q", "chosen": [{"role": "boss", "content": "a"}], "rejected": "b"},
            "chosen: a message is not",
        ),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "the prompt is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_can_be_skipped(taken, row, said_of_it):
    made = [*rows("standard"), row]
    said = (
        r"offline.source.path=.*: 1 of 11 rows cannot be used \(read as trl\):"
        rf"\n  row 11: .*{said_of_it}"
    )
    with pytest.raises(UserError, match=said):
        taken(made)
    pairs = taken(made, "offline.on_bad_row=skip")
    assert (
        pairs.read_train().height == 10
        and pairs.read_dropped()["detail"].str.contains(said_of_it).all()
    )


def test_a_score_that_is_nan_is_none(taken):
    made = [
        {
            "prompt": "q",
            "chosen": "a",
            "rejected": "b",
            "score_chosen": float("nan"),
            "score_rejected": 1.0,
        }
    ]
    [row] = taken(made).read_train().to_dicts()
    assert row["chosen_score"] is None and row["rejected_score"] == 1.0 and row["margin"] is None


def test_a_row_s_own_probability_and_weight_are_kept(taken):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 0.9, "weight": 3}
    [pair] = taken([row]).read_train().to_dicts()
    assert (pair["p_chosen"], pair["weight"]) == (0.9, 3.0)
    with pytest.raises(UserError, match=r"its p_chosen is 1.5, and a probability is from 0 to 1"):
        taken([{**row, "p_chosen": 1.5}])


def test_scored_lists_without_a_difference_are_bad_rows(taken):
    made = [
        *rows("simpo"),
        {"prompt": "q", "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0, 1.0]},
    ]
    made += [{"prompt": "q", "all_generated_responses": ["a", "b"], "all_rm_scores": [1.0]}]
    with pytest.raises(
        UserError,
        match="row 11: all answers score alike\n  row 12: .* are not two lists of one length",
    ):
        taken(made)


def test_an_unknown_shape_is_refused_with_what_to_type(taken):
    with pytest.raises(
        UserError, match=r"no known shape has the columns a, b.\n  Give offline.shape=columns"
    ):
        taken([{"a": 1, "b": 2}])


def test_nothing_left_is_refused_with_the_counts(taken):
    with pytest.raises(UserError, match="of 1 row none is left"):
        taken(rows("standard")[:1], "offline.decontamination.ngram=8", fenced=QUESTIONS[0])


@pytest.mark.parametrize("kind", ["json", "parquet", "folder"])
def test_rows_are_read_from_other_files_too(tmp_path, policy, kind):
    if kind == "json":
        (tmp_path / "rows.json").write_text(json.dumps(rows("ultrafeedback")))
    else:
        write_table(tmp_path / "part" / "rows.parquet", pl.DataFrame(rows("ultrafeedback")))
    place = {"json": "rows.json", "parquet": "part/rows.parquet", "folder": "part"}[kind]
    write_table(tmp_path / "decontamination" / "ngrams.parquet", fencing.ngram_table(set()))
    pairs = offline.run(
        config(tmp_path / place),
        tmp_path / "out",
        policy=policy,
        decontamination=Decontamination(tmp_path / "decontamination"),
    )
    assert pairs.read_train().height == 10
