"""Models in the shapes of the families that users train, each from prompts to a trained pair.

The ids of the rendered template are the contract: a BOS in each turn is right where the template
writes it, and a doubled one is refused before anything is sampled.
"""

import dataclasses
import importlib
import json
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import Decontamination, Model, Pairs, Prompts, open_artifact, write_table
from pipeline.backends.chat import ModelTokenizer
from pipeline.data import decontamination
from pipeline.driver import worker
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.stages import offline, sample
from pipeline.step import Step
from tests.data.test_preferences import config as offline_config
from tests.golden.chat_families import FAMILIES, TEXT, write_checkpoint, write_model
from tests.support.house import HOUSE, check_steps, composed, identity_of

model = pytest.mark.model
every_family = pytest.mark.parametrize("name", FAMILIES)
with_bos = pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if family.bos]
)
writing_bos = pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if "bos_token" in family.template]
)
# An added BOS doubles the one that the template has written already.
doubling_bos = pytest.mark.parametrize(
    "name",
    [name for name, f in FAMILIES.items() if f.adds_bos and "bos_token" in f.template],
)
WORDS = TEXT.split()
RUN = (
    "dtype=float32",
    "limits={prompt: 200, completion: 24}",
    "prompts.split={dev: 2, test: 2}",
    "prompts.decontamination.ngram=6",
    "backend@sample.backend=transformers",
    "sample.settings.draw={n: 4, temperature: 1.0, top_p: 1.0}",
    "score=own",
    "+scorer@score.scorers.length=length",
    "+scorer@evaluate.score.scorers.length=length",
    "score.scorers.length.unit=characters",
    "score.scorers.length.min=400",
    "score.scorers.length.max=4000",
    "pair.scorer=length",
    "pair.filters.allow_truncated=true",
    "pair.dev={share: 0.2, min: 2, max_share: 0.3}",
    "train.batch=4",
    "train.gradient_checkpointing=false",
    "train.eval_every=8",
    "train.guards.prompts=2",
    "until=train@1",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each family's checkpoint, made once."""

    @cache
    def make(name: str) -> Path:
        return write_checkpoint(FAMILIES[name], tmp_path_factory.mktemp(name) / name)

    return make


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    @cache
    def make(name: str) -> Model:
        return write_model(
            FAMILIES[name], tmp_path_factory.mktemp("store") / "sft" / name, layers=1
        )

    return make


def sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=12))


def conversations(name: str, count: int) -> list[list[dict[str, str]]]:
    """By turns: one question, several turns, and a system message where the template knows one."""
    chance, made = random.Random(name), []
    for at in range(count):
        messages = [{"role": "user", "content": sentence(chance)}]
        if at % 3 == 1:
            answer = {"role": "assistant", "content": sentence(chance)}
            messages += [answer, {"role": "user", "content": sentence(chance)}]
        if at % 3 == 2 and FAMILIES[name].system:
            messages = [{"role": "system", "content": sentence(chance)}, *messages]
        made.append(messages)
    return made


def arguments(name: str, checkpoint: Path, folder: Path) -> list[str]:
    file = folder / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": each}) + "\n" for each in conversations(name, 16))
    )
    kwargs = json.dumps(FAMILIES[name].kwargs).replace('"', "")
    return [
        "score=rules",
        f"prompts.path={file}",
        f"sft.model={checkpoint}",
        f"template.kwargs={kwargs}",
        *RUN,
    ]


def run_here(last: Step, store: Path) -> dict[str, Path]:
    """The plan's Steps up to the round's training, each stage in this process, as in a worker."""
    folders: dict[str, Path] = {}
    steps = list(last.ancestors())
    for step in [*next(step for step in steps if step.stage == "train").ancestors()]:
        inputs = {
            name: {"stage": source.stage, "path": folders[identity_of(source)], "part": part}
            for name, source, part in step.edges()
        }
        out = folders[identity_of(step)] = store / step.stage / identity_of(step)
        out.mkdir(parents=True)
        stage = importlib.import_module(f"pipeline.stages.{step.stage}")
        stage.run(step.config, out, **worker.open_inputs(inputs))
        folders[step.stage] = out
    return folders


# ── the whole run ─────────────────────────────────────────────────────────────────────────────────


@model
@every_family
def test_a_family_is_trained_from_prompts_to_a_model(made, tmp_path, name):
    checkpoint = made(name)
    folders = run_here(plan(composed(*arguments(name, checkpoint, tmp_path))), tmp_path / "store")
    pairs, chat = Pairs(folders["pair"]), ModelTokenizer(Model(folders["sft"]))
    rows = pl.concat([pairs.read_train(), pairs.read_dev()])
    assert rows.height >= 8 and pairs.read_funnel()["dropped_samples"].get("second BOS", 0) < 48 / 4
    for row in rows.iter_rows(named=True):
        assert row["prompt_token_ids"] == template_ids(chat, row["prompt"], FAMILIES[name].kwargs)
    kinds = {tuple(message["role"] for message in messages) for messages in rows["prompt"]}
    assert len(kinds) == (3 if FAMILIES[name].system else 2)
    steps = [line for line in Model(folders["train"]).read_metrics() if "loss" in line]
    assert steps and steps[0]["loss"] == pytest.approx(0.6931, abs=2e-3)
    weights = [
        (Model(folders[stage]).weights / "model.safetensors").read_bytes()
        for stage in ("sft", "train")
    ]
    assert weights[0] != weights[1]


def template_ids(
    chat: ModelTokenizer, messages: list[dict[str, str]], kwargs: dict[str, Any]
) -> list[int]:
    """By transformers itself, as a user would check it."""
    text = chat.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **kwargs
    )
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@pytest.mark.long
@model
@pytest.mark.parametrize("name", ["smollm2", pytest.param("llama2", marks=pytest.mark.slow)])
def test_the_command_line_trains_a_model_with_a_bos_in_each_turn(made, tmp_path, name):
    process = command(tmp_path, *arguments(name, made(name), tmp_path))
    assert process.returncode == 0, process.stdout + process.stderr
    [train] = (tmp_path / "store" / "train").glob("*/manifest.json")
    [pair] = (tmp_path / "store" / "pair").glob("*/train.parquet")
    bos = ModelTokenizer(
        Model(next((tmp_path / "store" / "sft").glob("*/manifest.json")).parent)
    ).bos
    assert max(ids.count(bos) for ids in pl.read_parquet(pair)["prompt_token_ids"].to_list()) > 1
    assert open_artifact("train", train.parent).read_metrics()


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "TQDM_DISABLE": "1"}
    words = sys.executable, "-m", "pipeline", *words
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


# ── answers that were not sampled ─────────────────────────────────────────────────────────────────


@model
@every_family
def test_an_answer_has_the_tokens_that_the_template_gives_it(policy, name):
    """Within the whole conversation, and up to the first token at which a sampler stops."""
    chat = ModelTokenizer(policy(name))
    for messages in conversations(name, 3):
        answer = {"role": "assistant", "content": "A quiet garden."}
        whole = chat.tokenizer.apply_chat_template([*messages, answer], tokenize=False)
        ids = [*chat.encode(messages, {}), *chat.encode_answer(messages, "A quiet garden.", {})]
        assert ids == chat.tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)]
        assert [
            token in chat.stop_ids for token in chat.encode_answer(messages, "A quiet garden.", {})
        ].index(True) == (len(chat.encode_answer(messages, "A quiet garden.", {})) - 1)


@model
@every_family
def test_a_demonstration_has_the_tokens_that_the_template_gives_it(policy, name):
    from pipeline.training.trainers.sft import encode

    chat = ModelTokenizer(policy(name))
    answer = {"role": "assistant", "content": "A quiet garden."}
    for messages in conversations(name, 3):
        example = encode(chat, [*messages, answer], {})
        ids = example["prompt_ids"] + example["completion_ids"]
        whole = chat.tokenizer.apply_chat_template([*messages, answer], tokenize=False)
        assert ids == chat.tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)]
        assert [token in chat.stop_ids for token in example["completion_ids"]].index(True) == (
            len(example["completion_ids"]) - 1
        )


@pytest.fixture
def taken(tmp_path, policy):
    def take(name: str, rows: list[dict], *words: str) -> Pairs:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cfg = offline_config(file, *words)
        table = decontamination.ngram_table(
            decontamination.hash_ngrams("nothing", cfg.decontamination.ngram)
        )
        write_table(tmp_path / "decontamination" / "ngrams.parquet", table)
        return offline.run(
            cfg,
            tmp_path / "out",
            policy=policy(name),
            decontamination=Decontamination(tmp_path / "decontamination"),
        )

    return take


def preferences(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": messages, "chosen": f"A quiet garden {at}.", "rejected": f"No garden {at}."}
        for at, messages in enumerate(conversations(name, count))
    ]


@model
@every_family
def test_no_offline_row_is_dropped_for_the_bos_that_its_template_writes(taken, policy, name):
    pairs, chat = taken(name, preferences(name, 6)), ModelTokenizer(policy(name))
    assert pairs.read_train().height == 6 and pairs.read_dropped().height == 0
    for row in pairs.read_train().iter_rows(named=True):
        assert row["prompt_token_ids"] == template_ids(chat, row["prompt"], {})


@model
@with_bos
def test_an_offline_row_that_spells_bos_out_is_dropped_and_named(taken, policy, name):
    bos = FAMILIES[name].bos
    planted = [
        {"prompt": [{"role": "user", "content": f"one {bos}two"}], "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "one"}], "chosen": f"a {bos}", "rejected": "b"},
    ]
    pairs = taken(name, [*preferences(name, 6), *planted])
    dropped = pairs.read_dropped().select("row", "reason").rows()
    if (
        ModelTokenizer(policy(name)).leading_bos is None
    ):  # it also ends a text, where it is an end like any other
        assert dropped == []
    else:
        assert (
            dropped == [(7, "second BOS"), (8, "second BOS")]
            and bos in pairs.read_dropped()["detail"][0]
        )


# ── a doubled BOS ─────────────────────────────────────────────────────────────────────────────────


def doubled(name: str, folder: Path) -> Path:
    """A checkpoint whose template writes BOS before what begins with one."""
    family = dataclasses.replace(
        FAMILIES[name], template="{{ bos_token }}" + FAMILIES[name].template
    )
    if name == "phi":  # its own template writes none
        family = dataclasses.replace(family, template="{{ bos_token }}" + family.template)
    return write_checkpoint(family, folder, layers=1)


@model
@writing_bos
def test_a_doubled_bos_is_refused_before_anything_is_drawn(tmp_path, name):
    """In preflight, in the stage that brings the model in, and by the sampler."""
    checkpoint = doubled(name, tmp_path / name)
    said = (
        rf"two BOS \({FAMILIES[name].bos}\)".replace("|", r"\|")
        + r".*\n.*template\.chat_template=FILE"
    )
    cfg = composed(*arguments(name, checkpoint, tmp_path))
    with pytest.raises(UserError, match=said):
        check_steps([step for step in plan(cfg).ancestors() if step.stage == "sft"])
    with pytest.raises(UserError, match=said):
        importlib.import_module("pipeline.stages.sft").run(cfg.sft, tmp_path / "sft")
    (tmp_path / "model.json").write_text(json.dumps({"weights": name, "tokenizer": name}))
    with pytest.raises(UserError, match=said):
        ModelTokenizer(Model(tmp_path)).encode(conversations(name, 1)[0], {})


@model
@pytest.mark.parametrize("name", ["smollm2"])
def test_the_remedy_for_a_doubled_bos_can_be_typed(tmp_path, name):
    """The template as it was before, given as a file: preflight and the stage take it."""
    checkpoint = doubled(name, tmp_path / name)
    (tmp_path / "mended.jinja").write_text(FAMILIES[name].template)
    words = [
        *arguments(name, checkpoint, tmp_path),
        f"template.chat_template={tmp_path / 'mended.jinja'}",
    ]
    cfg = composed(*words)
    check_steps([step for step in plan(cfg).ancestors() if step.stage == "sft"])
    made = importlib.import_module("pipeline.stages.sft").run(
        cfg.sft, tmp_path / "store" / "sft" / "a"
    )
    assert ModelTokenizer(made).encode(conversations(name, 1)[0], {})


@model
@doubling_bos
def test_prompts_that_were_tokenised_with_a_second_bos_are_refused(policy, tmp_path, name):
    """Someone rendered the template to text and let the tokenizer add its own BOS."""
    from pipeline.pairing import token_checks

    chat = ModelTokenizer(policy(name))
    row = a_pair(chat, conversations(name, 1)[0])
    text = chat.render(row["prompt"], {}, generation=True)
    twice = {**row, "prompt_token_ids": chat.tokenizer(text)["input_ids"]}
    cfg = composed(*arguments(name, tmp_path, tmp_path)).pair.for_round(1)
    with pytest.raises(
        UserError, match=r"the prompt begins with two BOS in 1 of 1 pairs.*\n(.*\n)+.*sample\.seed="
    ):
        token_checks.check_pairs(cfg, pl.DataFrame([twice]), chat)
    token_checks.check_pairs(cfg, pl.DataFrame([row]), chat)


def a_pair(chat: ModelTokenizer, messages: list[dict[str, str]]) -> dict[str, Any]:
    row = {"prompt": messages, "prompt_token_ids": chat.encode(messages, {}), "origin": "edited"}
    for side, text in (("chosen", "a"), ("rejected", "b")):
        row |= {side: [{"role": "assistant", "content": text}], f"{side}_id": side}
        row[f"{side}_token_ids"] = chat.encode_answer(messages, text, {})
    return row


@model
def test_a_template_that_does_not_keep_the_prompt_is_refused_before_anything_is_drawn(tmp_path):
    """What follows the prompt alone, such as an opened thought, is not in the conversation."""
    family = dataclasses.replace(
        FAMILIES["smollm2"],
        template=FAMILIES["smollm2"].template + "{% if add_generation_prompt %}<think>{% endif %}",
    )
    cfg = composed(
        *arguments("smollm2", write_checkpoint(family, tmp_path / "x", layers=1), tmp_path)
    )
    with pytest.raises(
        UserError, match=r"in one way alone and in another(.*\n)+.*template\.chat_template=FILE"
    ):
        importlib.import_module("pipeline.stages.sft").run(cfg.sft, tmp_path / "sft")


@model
def test_a_template_that_writes_the_date_is_named_where_two_days_differ(tmp_path):
    from pipeline.pairing import token_checks

    dated = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}" + FAMILIES[
        "llama3"
    ].template.removeprefix("{{ bos_token }}")
    family = dataclasses.replace(FAMILIES["llama3"], template=dated)
    chat = ModelTokenizer(write_model(family, tmp_path / "sft" / "a", layers=1))
    row = a_pair(chat, conversations("llama3", 1)[0])
    day = chat.tokenizer(chat.tokenizer.bos_token + "01 Jan 1999", add_special_tokens=False)[
        "input_ids"
    ]
    header = row["prompt_token_ids"].index(
        chat.tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    )
    row["prompt_token_ids"] = [*day, *row["prompt_token_ids"][header:]]
    cfg = composed(*arguments("llama3", tmp_path, tmp_path)).pair.for_round(1)
    with pytest.raises(
        UserError, match=r"differ from its template's(.*\n)+.*template\.kwargs\.date_string="
    ):
        token_checks.check_pairs(cfg, pl.DataFrame([row]), chat)


@model
def test_a_template_that_moves_the_system_message_is_refused_before_anything_is_drawn(tmp_path):
    """Mistral v0.3 writes it before the last question, and nowhere once an answer follows."""
    moving = FAMILIES["mistral"].template.replace(
        "{% if loop.first and system", "{% if loop.last and system"
    )
    family = dataclasses.replace(FAMILIES["mistral"], template=moving)
    policy = write_model(family, tmp_path / "store" / "sft" / "a", layers=1)
    cfg = composed(*arguments("mistral", policy.weights, tmp_path))
    prompts = tmp_path / "store" / "prompts" / "a"
    importlib.import_module("pipeline.stages.prompts").run(cfg.prompts, prompts)
    [draw] = cfg.sample.request_waves(1, cfg.pair.scorer)
    with pytest.raises(
        UserError, match=r"in one way alone and in another(.*\n)+.*template\.chat_template=FILE"
    ):
        sample.run(draw, tmp_path / "out", policy=policy, prompts=Prompts(prompts / "train"))
    assert not list(tmp_path.glob("out/samples/*"))


# ── who else reads a rendered template ────────────────────────────────────────────────────────────


@model
@every_family
def test_a_reward_model_reads_a_chat_as_its_template_writes_it(policy, name):
    from pipeline.scorers.reward_text import RewardEncoder, UnreadableText

    chat, bos = ModelTokenizer(policy(name)), FAMILIES[name].bos
    text = RewardEncoder(chat.tokenizer, "chat", {}, None)
    # Classifiers are read with the BOS that their tokenizer adds, also where the template has none.
    added = [chat.bos] if name == "zephyr" else []
    for messages in conversations(name, 3):
        whole = chat.render(
            [*messages, {"role": "assistant", "content": "A garden."}], {}, generation=False
        )
        assert text.encode(messages, "A garden.").ids == [*added, *chat.encode_text(whole)]
    if chat.leading_bos is not None:
        with pytest.raises(UnreadableText, match="spells out the reward model's BOS"):
            text.encode(messages, f"A {bos} garden.")


# ── messages that a template does not take ────────────────────────────────────────────────────────


def asked_with_a_system_message(name: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "be brief"}, *conversations(name, 1)[0]]


@model
def test_a_system_message_is_refused_where_the_template_takes_none(policy, taken):
    chat = ModelTokenizer(policy("gemma"))
    messages = asked_with_a_system_message("gemma")
    with pytest.raises(
        UserError, match=r"does not render .*be brief.*no system role here.*\n.*chat_template=FILE"
    ):
        chat.encode(messages, {})
    planted = [*preferences("gemma", 3), {"prompt": messages, "chosen": "a", "rejected": "b"}]
    with pytest.raises(
        UserError, match=r"offline: row 4: .*no system role here(.*\n)+.*offline\.on_bad_row=skip"
    ):
        taken("gemma", planted)
    pairs = taken("gemma", planted, "offline.on_bad_row=skip")
    assert pairs.read_train().height == 3 and pairs.read_dropped().select(
        "row", "reason"
    ).rows() == [(4, "bad row")]


@model
def test_a_demonstration_in_roles_that_the_template_does_not_take_is_a_bad_row(policy, tmp_path):
    from functools import partial

    from pipeline.config import JsonlDemonstrations
    from pipeline.data.decontamination import OverlapCheck
    from pipeline.data.demonstrations import encode_demonstrations, read_demonstrations
    from pipeline.training.trainers.sft import encode

    table = decontamination.ngram_table(decontamination.hash_ngrams("nothing", 8))
    write_table(tmp_path / "ngrams.parquet", table)
    answer = {"role": "assistant", "content": "A quiet garden."}
    rows = [[*messages, answer] for messages in conversations("llama2", 3)]
    rows[1] = [rows[1][0], *rows[1][:1], answer]  # two questions in a row
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))

    def taken(on_bad_row: str):
        cfg = JsonlDemonstrations(kind="jsonl", path=str(file), on_bad_row=on_bad_row)
        tokens = partial(encode, ModelTokenizer(policy("llama2")), kwargs={})
        return encode_demonstrations(
            read_demonstrations(cfg), tokens, OverlapCheck(Decontamination(tmp_path), 8), 512, cfg
        )

    with pytest.raises(
        UserError, match=r"sft\.data: row 2: .*take turns(.*\n)+.*sft\.data\.on_bad_row=skip"
    ):
        taken("fail")
    examples, log = taken("skip")
    assert len(examples) == 2 and log.table().select("row", "reason").rows() == [
        ("row 2", "bad row")
    ]
