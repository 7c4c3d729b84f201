"""Tools from prompts to a trained model: a checkpoint learns to call, its samples are scored by
their calls, and the tokens that are trained are those of its template."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import Model, Pairs, Samples, Scores
from pipeline.backends.chat import ModelTokenizer
from pipeline.plan import plan
from tests.e2e.test_chat_families import run_here
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

ENDS = "ravo", "nder", "lmit", "kesa"
PLACES = [f"{start}{end}" for start in ("No", "Be", "Al", "Ti") for end in ENDS]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps({**row, "tools": [WEATHER]}) + "\n" for row in rows))
    return file


def conversation(place: str, *, long: bool) -> list[dict[str, Any]]:
    """One turn, or several with a call and its result."""
    before = [ask(f"Old {place}"), calling(call("Rome")), result("21"), answering("Yes.")]
    return [*(before if long else []), ask(place)]


def conversations() -> list[list[dict[str, Any]]]:
    return [conversation(place, long=at % 2 == 1) for at, place in enumerate(PLACES)]


def demonstrations() -> list[dict[str, Any]]:
    """Every question has been answered by a call for Rome, and by one for Oslo."""
    return [
        {"messages": [*conversation(place, long=long), calling(call(city))]}
        for place in PLACES
        for long in (False, True)
        for city in ("Rome", "Oslo")
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.model
def test_calls_are_learned_scored_paired_and_trained_in_the_template_s_tokens(tmp_path):
    base = tiny_model(tmp_path / "base", template=TOOL_CHAT, context=1024, hidden=64, spread=0.05)
    asked = [{"messages": [*turns, calling(call("Rome"))]} for turns in conversations()]
    offline = [
        {"prompt": [ask(place)], "chosen": [calling(call("Rome"))], "rejected": [answering("No.")]}
        for place in PLACES
    ]
    words = [
        f"prompts.path={write_rows(tmp_path / 'prompts.jsonl', asked)}",
        "prompts.split={dev: 2, test: 2}",
        "base=checkpoint",
        f"base.model={base.weights}",
        "sft=train",
        "demonstrations@sft.data=jsonl",
        f"sft.data.path={write_rows(tmp_path / 'demonstrations.jsonl', demonstrations())}",
        "sft={batch: 8, epochs: 12, learning_rate: 5e-3, gradient_checkpointing: false}",
        "dtype=float32",
        "limits={prompt: 900, completion: 100}",
        "backend@sample.backend=transformers",
        "sample.settings.draw={n: 6, temperature: 1.0, top_p: 1.0}",
        "score=json",
        "score.scorers.json.calls=tool_calls",
        "offline=file",
        f"offline.source.path={write_rows(tmp_path / 'offline.jsonl', offline)}",
        "pair.mix.on_policy=0.5",
        "pair.mix.offline=0.5",
        "pair.dev={share: 0.2, min: 2, max_share: 0.3}",
        "train.batch=4",
        "train.gradient_checkpointing=false",
        "train.eval_every=8",
        "train.guards.prompts=2",
        "until=train@1",
    ]
    folders = run_here(plan(composed(*words)), tmp_path / "store")
    chat = ModelTokenizer(Model(folders["sft"]))

    samples = Samples(folders["sample"]).read()
    by_text = samples.join(Scores(folders["score"]).read(), on="sample_id").select(
        "completion", "score", "detail"
    )
    rights = by_text.filter(pl.col("score") == 1)
    assert set(rights["completion"]) == {write_call("Rome")}
    wrongs = by_text.filter(pl.col("completion") == write_call("Oslo"))
    assert wrongs.height and set(wrongs["detail"]) == {"it calls get_weather with other arguments"}

    pairs = Pairs(folders["pair"])
    rows = pl.concat([pairs.read_train(), pairs.read_dev()])
    assert set(rows["origin"]) == {"offline", "on-policy"}
    turns_of = {turns[-1]["content"]: turns for turns in conversations()}
    for row in rows.iter_rows(named=True):
        turns = (
            turns_of[row["prompt"][-1]["content"]]
            if row["origin"] != "offline"
            else [{"role": "user", "content": row["prompt"][-1]["content"]}]
        )
        assert row["prompt_token_ids"] == template_ids(chat, turns)
        assert row["chosen_token_ids"] == [*chat.encode_text(write_call("Rome")), chat.eos]
        assert row["prompt"][0] == {"role": "tools", "content": json.dumps([WEATHER])}
    kinds = {tuple(message["role"] for message in messages) for messages in rows["prompt"]}
    assert ("tools", "user", "tool_calls", "tool", "assistant", "user") in kinds
    steps = [line for line in Model(folders["train"]).read_metrics() if "loss" in line]
    assert steps and steps[0]["loss"] == pytest.approx(0.6931, abs=2e-3)


def template_ids(chat: ModelTokenizer, turns: list[dict[str, Any]]) -> list[int]:
    """By transformers itself, from the user's own rows."""
    turns = [
        {**turn, "tool_calls": [parsed(one) for one in turn["tool_calls"]], "content": ""}
        if turn.get("tool_calls")
        else turn
        for turn in turns
    ]
    text = chat.tokenizer.apply_chat_template(
        turns, tools=[WEATHER], tokenize=False, add_generation_prompt=True
    )
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def parsed(one: dict[str, Any]) -> dict[str, Any]:
    function = {**one["function"], "arguments": json.loads(one["function"]["arguments"])}
    return {**one, "function": function}
