"""Reward models as scorers: scores do not depend on the batch, the end is kept, faults named."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter

from pipeline.artifacts import Model, Prompts, Samples, write_table
from pipeline.config import RewardCheckpoint, ScorerConfig
from pipeline.errors import StageError, UserError
from pipeline.plan import plan
from pipeline.scorers import Answer, Score, open_scorer
from pipeline.scorers.reward_model import check_probes
from pipeline.scorers.reward_text import EncodedRow
from pipeline.stages import score
from pipeline.text import strip_reasoning
from tests.stages.test_pair import SAMPLE
from tests.stages.test_score import sample_row
from tests.support.house import SMALL, composed, fingerprints, named
from tests.support.tiny import CHAT, WORDS, tiny_classifier, tiny_model

model = pytest.mark.model
KINDS = {"llama": "chat", "bert": "pair", "deberta-v2": "pair"}


def scorer(folder: Path | None, **changes: Any):
    values = {
        "kind": "reward_model",
        "model": str(folder) if folder else None,
        "revision": None,
        "trust": {"remote_code": False, "pickled_weights": False},
        "template": {"chat_template": None, "kwargs": {}},
        "input": "chat",
        "label": None,
        "max_length": None,
        "strip_reasoning": False,
        "engine": "transformers",
        "dtype": "float32",
        "gold": False,
        "runtime": {"batch_tokens": 512, "memory": 0.5},
    }
    return open_scorer(TypeAdapter(ScorerConfig).validate_python({**values, **changes}))


def checkpoint(folder: Path | str) -> RewardCheckpoint:
    trust = {"remote_code": False, "pickled_weights": False}
    return RewardCheckpoint(kind="checkpoint", model=str(folder), revision=None, trust=trust)


def answers(count: int = 24, longest: int = 40) -> list[Answer]:
    chance = random.Random(3)

    def text() -> str:
        return " ".join(chance.choices(WORDS.split(), k=chance.randint(1, longest)))

    return [
        Answer(f"s{at}", f"p{at}", [{"role": "user", "content": text()}], text(), {})
        for at in range(count)
    ]


def run_scorer(folder: Path, said: list[Answer], **changes: Any) -> dict[str, Score]:
    opened = scorer(folder, **changes)
    found = {row.sample_id: row for row in opened.score(said)}
    opened.close()
    return found


def scores(folder: Path, said: list[Answer], **changes: Any) -> dict[str, float]:
    return {name: row.score for name, row in run_scorer(folder, said, **changes).items()}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A classifier of each kind, made once; copied by whoever harms it."""

    @cache
    def of(kind: str = "llama", labels: int = 1) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        tiny_classifier(folder, kind, labels)
        return folder

    return of


@pytest.fixture
def own(made, tmp_path):
    return lambda *kind: shutil.copytree(made(*kind), tmp_path / "own")


# ── what a score is ─────────────────────────────────────────────────────────────────────────────


def score_alone(folder: Path, answer: Answer, shape: str) -> float:
    """One text, no padding, no batch: the definition."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    module.config.pad_token_id = None
    if shape == "chat":
        messages = [*answer.prompt, {"role": "assistant", "content": answer.completion}]
        told = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    else:
        told = tokenizer(answer.prompt[0]["content"], answer.completion, return_tensors="pt")
    with torch.no_grad():
        return module.eval()(**told).logits.squeeze().item()


@model
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_plain_logit_whatever_shares_its_batch_in_whatever_order(made, kind):
    said = answers(longest=20)
    found = scores(made(kind), said, input=KINDS[kind])
    assert len(set(found.values())) == len(said)
    for answer in said[:4]:
        assert found[answer.sample_id] == pytest.approx(
            score_alone(made(kind), answer, KINDS[kind]), abs=1e-4
        )
    for order, tokens in ((said[::-1], 1), (said[::2] + said[1::2], 100_000)):
        again = scores(
            made(kind), order, input=KINDS[kind], runtime={"batch_tokens": tokens, "memory": 0.5}
        )
        assert again == pytest.approx(found, abs=1e-4)


@model
@pytest.mark.parametrize("pad", ["<|end|>", None], ids=["pad is eos", "no pad"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_found_whatever_the_pad_token_and_its_side(own, made, pad, side):
    """A templated answer ends with EOS: as pad token, transformers would take it for padding."""
    folder, said = own("llama"), answers()
    edit(folder / "tokenizer_config.json", pad_token=pad, padding_side=side)
    edit(folder / "config.json", pad_token_id=2 if pad else None)
    assert scores(folder, said) == pytest.approx(scores(made("llama"), said), abs=1e-4)


@model
def test_vllm_and_transformers_agree(made):
    said = answers()
    slow, fast = (scores(made("llama"), said, engine=engine) for engine in ("transformers", "vllm"))
    assert fast == pytest.approx(slow, abs=1e-4)
    assert max(slow.values()) - min(slow.values()) > 1, "a sigmoid would lie between 0 and 1"


@model
def test_two_labels_give_log_odds_and_a_named_label_its_own_logit(made):
    said = answers(6)
    odds, no, yes = (
        scores(made("llama", 2), said, label=label) for label in (None, "LABEL_0", "LABEL_1")
    )
    assert odds == pytest.approx({name: yes[name] - no[name] for name in yes}, abs=1e-5)
    third = scores(made("llama", 3), said, label="LABEL_2")
    assert len(set(third.values())) == 6


@model
def test_what_is_too_long_loses_its_beginning_and_is_counted(made):
    question = [{"role": "user", "content": "river " * 200}]
    said = [
        Answer(f"s{at}", "p", question, f"{WORDS} {end}", {})
        for at, end in enumerate(("one", "three"))
    ]
    short = Answer("short", "p", [{"role": "user", "content": "river"}], "one", {})
    for kind in ("llama", "bert"):
        found = run_scorer(made(kind), [*said, short], input=KINDS[kind])
        assert found["s0"].score != pytest.approx(found["s1"].score, abs=1e-3)
        assert json.loads(found["s0"].detail)["cut"] > 50 and found["short"].detail == ""
    endless = [
        Answer(f"s{at}", "p", short.prompt, "river " * 300 + end, {})
        for at, end in enumerate(("one", "three"))
    ]
    one, three = run_scorer(made("bert"), endless, input="pair").values()
    assert one.score != pytest.approx(three.score, abs=1e-3)


@model
def test_a_cut_chat_begins_with_its_one_bos_and_ends_as_it_did(made):
    from transformers import AutoTokenizer

    from pipeline.scorers.reward_text import RewardEncoder

    tokenizer = AutoTokenizer.from_pretrained(made("llama"))
    asked, answer = [{"role": "user", "content": "river " * 50}], f"{WORDS} three"
    whole = RewardEncoder(tokenizer, "chat", {}, None).encode(asked, answer)
    cut = RewardEncoder(tokenizer, "chat", {}, 40).encode(asked, answer)
    assert len(cut.ids) == 40 and cut.tokens_cut == len(whole.ids) - 40
    assert cut.ids[0] == tokenizer.bos_token_id and cut.ids[1:] == whole.ids[-39:]
    assert whole.ids.count(tokenizer.bos_token_id) == 1


@model
def test_a_bos_that_the_template_forgets_is_the_tokenizer_s_and_never_a_second(made, tmp_path):
    from transformers import AutoTokenizer

    from pipeline.scorers.reward_text import RewardEncoder

    tokenizer = AutoTokenizer.from_pretrained(made("bert"))  # it puts <s> before plain text
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "<|end|>"
    asked = [{"role": "user", "content": "river"}]
    rows = []
    for template in (CHAT, CHAT.replace("{{ bos_token }}", "")):
        tokenizer.chat_template = template
        rows.append(RewardEncoder(tokenizer, "chat", {}, None).encode(asked, "one"))
    assert rows[0] == rows[1] and rows[0].ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>hm</think> Yes.", "Yes."),
        ("<think>hm\n<b></think>\nYes. <think>again</think>No.", "Yes. No."),
        ("the prompt opened it</think>Yes.", "Yes."),
        ("Well. <think>never closed", "Well."),
        ("No thought at all.", "No thought at all."),
    ],
)
def test_reasoning_is_hidden(text, left):
    assert strip_reasoning(text) == left


@model
def test_a_scorer_that_strips_reasoning_marks_what_the_user_reads(made):
    [plain] = answers(1)
    thought = Answer(
        plain.sample_id,
        plain.prompt_id,
        plain.prompt,
        f"<think>{WORDS}</think>{plain.completion}",
        {},
    )
    folder = made("llama")
    assert scores(folder, [thought], strip_reasoning=True) == scores(folder, [plain])
    assert scores(folder, [thought]) != scores(folder, [plain])


# ── faults ──────────────────────────────────────────────────────────────────────────────────────


def two_bos(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT)


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def raising_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no assistant here') }}")


def a_causal_model(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_model(folder.parent / "policy")
    (folder.parent / "policy" / "weights").rename(folder)


def not_whole(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def the_same_for_all(folder: Path) -> None:
    fill_rows(folder, "score.weight", slice(None), 0.0)


def fill_rows(folder: Path, name: str, rows: Any, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][rows] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@model
@pytest.mark.parametrize(
    ("harm", "changes", "said"),
    [
        (two_bos, {}, r"more than one BOS.*\n.*template.chat_template=FILE"),
        (no_template, {}, r"no chat template.*\n.*input=pair"),
        (
            raising_template,
            {},
            r"does not render it: no assistant here.*\n.*template.chat_template=FILE",
        ),
        (
            a_causal_model,
            {},
            r"not a reward model \(LlamaForCausalLM\).*score.weight.*random.*\n.*reward=train",
        ),
        (not_whole, {}, r"lack 1 tensor \(model.norm.weight"),
        (the_same_for_all, {}, "for each of four different texts"),
        (lambda folder: None, {"label": "LABEL_9"}, "no label LABEL_9.*Known: LABEL_0"),
        (lambda folder: None, {"max_length": 999}, "can see 128 tokens"),
        (shutil.rmtree, {}, "there is no such folder"),
    ],
)
def test_a_reward_model_is_refused(own, harm, changes, said):
    folder = own("llama")
    harm(folder)
    with pytest.raises(UserError, match=said):
        scores(folder, answers(1), **changes)


@model
def test_labels_that_give_no_single_number_are_refused(made):
    with pytest.raises(
        UserError,
        match=r"3 labels \(LABEL_0, LABEL_1, LABEL_2\).*\n.*score\.scorers\.NAME\.label=LABEL",
    ):
        scores(made("llama", 3), answers(1))


@model
def test_an_encoder_without_pad_token_is_refused(own):
    folder = own("bert")
    edit(folder / "tokenizer_config.json", pad_token=None)
    with pytest.raises(UserError, match=r"no pad token.*\n.*Set pad_token"):
        scores(folder, answers(1), input="pair")


@model
def test_a_score_that_is_no_number_and_a_prompt_that_cannot_be_put_are_null(own):
    from transformers import AutoTokenizer

    folder = own("llama")
    [spoilt] = AutoTokenizer.from_pretrained(folder)("$", add_special_tokens=False)["input_ids"]
    fill_rows(folder, "model.embed_tokens.weight", spoilt, math.nan)
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
    )
    fine, paid, told = answers(3)
    paid = Answer("paid", "p", paid.prompt, "costs $ 3", {})
    told = Answer(
        "told", "p", [{"role": "system", "content": "Be brief."}, *told.prompt], told.completion, {}
    )
    found = run_scorer(folder, [fine, paid, told])
    assert found[fine.sample_id].score is not None
    assert found["paid"].score is None and "nan" in found["paid"].detail
    assert found["told"].score is None and "no system" in found["told"].detail


class Drifting:
    """An engine whose scores depend on what shares the batch."""

    def compute_logits(self, rows: list[EncodedRow]) -> list[list[float]]:
        return [[float(at + 0.1 * len(rows))] for at, _ in enumerate(rows)]


class Broke(Drifting):
    def compute_logits(self, rows: list[EncodedRow]) -> list[list[float]]:
        return [[math.nan] for _ in rows]


@pytest.mark.parametrize(
    ("engine", "said"), [(Drifting(), "in a batch and alone"), (Broke(), "dtype=float32")]
)
def test_four_texts_are_looked_at_before_a_long_job(engine, said):
    with pytest.raises(StageError, match=said):
        check_probes(
            engine, [EncodedRow([1]), EncodedRow([2])], lambda logits: logits[0], "float32", "mine"
        )


def test_a_pair_model_on_vllm_is_refused():
    with pytest.raises(ValueError, match="input=pair needs engine=transformers"):
        scorer(Path("mine"), input="pair", engine="vllm")


# ── in the plan ─────────────────────────────────────────────────────────────────────────────────

ASKED = ["recipes=smoke", "+scorer@evaluate.score.scorers.rules=reward_model", "reward=train"]


def test_only_a_score_that_asks_for_the_run_s_reward_model_has_its_edge():
    steps = named(plan(composed(*ASKED)))
    assert "reward" not in steps["score@1"].inputs
    assert steps["score@test sft"].inputs["reward"] is steps["reward@0"]
    assert steps["reward@0"].inputs["start"] is steps["sft@0"]
    plain, asked = fingerprints("recipes=smoke"), fingerprints(*ASKED)
    assert (
        plain["score@1"] == asked["score@1"] and plain["score@test sft"] != asked["score@test sft"]
    )


def test_a_reward_model_that_nobody_asks_and_one_that_is_not_there_are_said():
    asking = "scorer@score.scorers.rules=reward_model"
    for words, said in (
        (["reward=train"], "reward: no scorer uses it"),
        ([asking], "has no model, and reward is none"),
        ([asking, "reward=train", "reward.start=base"], "base is none"),
        (
            [asking, "reward=train", "reward.decontamination.ngram=5"],
            "reward.decontamination.ngram=5 .* 13 words. Give prompts.decontamination.ngram",
        ),
    ):
        with pytest.raises(UserError, match=said):
            composed(*SMALL, *words)


def test_a_scorer_s_hub_model_is_pinned_to_its_commit():
    from pipeline.step import has_floating_revision, pin_revisions

    words = [
        "recipes=smoke",
        "scorer@score.scorers.rules=reward_model",
        "score.scorers.rules.model=owner/name",
    ]
    cfg = composed(*words)
    fixed = pin_revisions(cfg, lambda name, revision: "a" * 40)
    assert has_floating_revision(named(plan(cfg))["score@1"]) and not has_floating_revision(
        named(plan(fixed))["score@1"]
    )
    assert fixed.score.scorers["rules"].revision == "a" * 40


@model
def test_the_stage_marks_with_the_run_s_reward_model_and_counts_what_was_cut(tmp_path):
    from pipeline.stages import reward, score

    tiny_classifier(tmp_path / "mine")
    rm = reward.run(checkpoint(tmp_path / "mine"), tmp_path / "store" / "reward" / "f.partial")
    assert not list(rm.path.rglob("*.safetensors"))
    rows = [
        {
            "prompt_id": "p",
            "sample_id": name,
            "prompt": [{"role": "user", "content": "river"}],
            "completion": text,
        }
        for name, text in (("short", "one"), ("long", "river " * 200))
    ]
    rest = {"prompt_token_ids": [1], "token_ids": [2], "finish_reason": "stop", "setting": "draw"}
    table = pl.DataFrame([{**row, **rest} for row in rows], schema=SAMPLE)
    write_table(tmp_path / "sample" / "samples" / "00000.parquet", table)
    prompts = pl.DataFrame([{"prompt_id": "p", "prompt": [], "columns": "{}"}])
    write_table(tmp_path / "prompts" / "prompts.parquet", prompts)
    cfg = composed("recipes=smoke", "score=reward", "reward=train", "pair.scorer=reward").score
    samples, asked = Samples(tmp_path / "sample"), Prompts(tmp_path / "prompts")
    marked = score.run(
        cfg, tmp_path / "out", samples=samples, prompts=asked, reward=Model(rm.path)
    ).read()
    assert marked["scorer"].to_list() == ["reward"] * 2 and marked["score"].null_count() == 0
    assert json.loads((tmp_path / "out" / "cost.json").read_text()) == {
        "scores": 2,
        "answers": 2,
        "failed": 0,
        "cut": 1,
    }


# ── several workers ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> tuple[Samples, Prompts]:
    """Six shards of four answers."""
    folder, said = tmp_path_factory.mktemp("shelf"), answers()
    for at in range(0, len(said), 4):
        rows = [
            sample_row(one.prompt_id, one.sample_id, one.completion) for one in said[at : at + 4]
        ]
        write_table(
            folder / "sample" / "samples" / f"{at:05d}.parquet", pl.DataFrame(rows, schema=SAMPLE)
        )
    prompts = pl.DataFrame(
        [{"prompt_id": one.prompt_id, "prompt": [], "columns": "{}"} for one in said]
    )
    write_table(folder / "prompts" / "prompts.parquet", prompts)
    return Samples(folder / "sample"), Prompts(folder / "prompts")


def run_stage(
    workers: int, folder: Path, shelf: tuple[Samples, Prompts], out: Path
) -> dict[str, bytes]:
    """What the stage publishes for a reward model, a rule and an ensemble of both."""
    words = [
        "recipes=smoke",
        "+scorer@score.scorers.own=reward_model",
        f"score.scorers.own.model={folder}",
    ]
    words += ["scorer@score.scorers.rules=length", "+scorer@score.scorers.both=ensemble"]
    words += ["score.scorers.both.weights={own: 1, rules: 1}", f"score.runtime.workers={workers}"]
    samples, prompts = shelf
    score.run(composed(*words).score, out, samples=samples, prompts=prompts)
    return {path.name: path.read_bytes() for path in (out / "scores").iterdir()}


@model
def test_two_workers_give_the_bytes_of_one(made, shelf, tmp_path):
    one = run_stage(1, made(), shelf, tmp_path / "1")
    assert len(one) == 6 and run_stage(2, made(), shelf, tmp_path / "2") == one
    assert {path.name for path in (tmp_path / "2/scratch/workers").iterdir()} == {
        "worker-0.log",
        "worker-1.log",
    }
    assert not (tmp_path / "1/scratch/workers").exists()


@pytest.mark.slow
@model
def test_a_killed_worker_gives_its_shard_back(made, shelf, tmp_path, capfd):
    killer = threading.Thread(target=kill_the_first_that_opens_its_model)
    killer.start()
    two = run_stage(2, made(), shelf, tmp_path / "2")
    killer.join()
    assert "was killed by SIGKILL and gives back 1 shard." in capfd.readouterr().err
    assert two == run_stage(1, made(), shelf, tmp_path / "1")


def kill_the_first_that_opens_its_model() -> None:
    """It has claimed a shard by then; torch is loaded for the model alone."""
    while True:
        for hand in multiprocessing.active_children():
            if "libtorch" in Path(f"/proc/{hand.pid}/maps").read_text():
                return os.kill(hand.pid, signal.SIGKILL)
        time.sleep(0.02)


def test_only_models_that_run_here_are_what_workers_share():
    words = ["+scorer@score.scorers.own=reward_model", "score.scorers.own.model=./rm"]
    words += ["+scorer@score.scorers.paid=pairwise", "score.scorers.paid.engine.model=m"]
    words += ["+scorer@score.scorers.judge=rubric", "engine@score.scorers.judge.engine=vllm"]
    words += [
        "score.scorers.judge.engine.model=./judge",
        "score.scorers.judge.engine.runtime.tensor_parallel=2",
    ]
    cfg = composed("recipes=smoke", *words).score
    assert (list(cfg.local_model_scorers), cfg.gpus_each, list(cfg.other_scorers)) == (
        ["judge", "own"],
        2,
        ["paid", "rules"],
    )
