"""Rehearsal: the demonstrations' likelihood is in the loss, and less of them is forgotten."""

import json
from pathlib import Path

import pytest

from pipeline.artifacts import (
    DROPPED_FILE,
    Decontamination,
    Model,
    read_table,
    write_table,
    write_text,
)
from pipeline.backends.chat import ModelTokenizer
from pipeline.config import TrainConfig
from pipeline.data import decontamination
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.stages import train
from pipeline.training.trainers.rehearsal import Rehearsal
from tests.support.house import SMALL, composed, fingerprints, named
from tests.support.preferences import LORA, dpo, text
from tests.training.test_guards import Round, metric_by_step, published_files

ON = "+rehearsal@train.rehearsal=default"


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"))


def conversations(count: int, seed: int) -> list[list[dict[str, str]]]:
    import random

    draw = random.Random(seed)
    said = [(text(draw, 2, 8), text(draw, 3, 9)) for _ in range(count)]
    return [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        for ask, answer in said
    ]


@pytest.fixture(scope="module")
def demonstrations_file(round_) -> Path:
    file = round_.store / "taught.jsonl"
    write_text(
        file, "".join(json.dumps({"messages": turns}) + "\n" for turns in conversations(40, 5))
    )
    return file


@pytest.fixture(scope="module")
def clear(round_) -> Decontamination:
    write_table(
        round_.store / "decontamination" / "ngrams.parquet",
        decontamination.ngram_table(decontamination.hash_ngrams("none of these words", 3)),
    )
    return Decontamination(round_.store / "decontamination")


def rehearsal_config(
    demonstrations_file: Path, share: float = 0.75, weight: float = 0.5, **changes
) -> TrainConfig:
    data = {"kind": "jsonl", "path": str(demonstrations_file), "on_bad_row": "fail"}
    block = {
        "share": share,
        "weight": weight,
        "data": data,
        "decontamination": {"ngram": 3},
        "template_kwargs": {},
    }
    return dpo(
        **{"rehearsal": block, "learning_rate": 3e-3, "typical_learning_rate": 3e-3, **changes}
    )


def nll(module, tokenizer, turns: list[dict[str, str]]) -> float:
    """By the template, one conversation at a time, in float64."""
    import torch

    prompt = tokenizer.apply_chat_template(
        turns[:-1], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        logps = module(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return -sum(logps[at - 1, whole[at]].item() for at in range(len(prompt), len(whole))) / (
        len(whole) - len(prompt)
    )


@pytest.mark.model
@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_the_loss_is_the_objective_s_and_the_weighted_likelihood_of_the_step_s_demonstrations(
    round_, demonstrations_file, clear, name, tmp_path
):
    from pipeline.models import loading
    from pipeline.training import build
    from pipeline.training.monitoring import guards

    others = {
        "dpo": {},
        "simpo": {"loss": ["simpo"], "reference_logps": "none"},
        "kto": {"trainer": "kto", "loss": ["apo_zero_unpaired"], "reference_logps": "online"},
    }
    cfg = rehearsal_config(demonstrations_file, weight=0.3, batch=8, micro_batch=4, **others[name])
    tokenizer = loading.load_tokenizer(round_.sft)
    rows = {
        part: train.prepare_pairs(cfg, [round_.pairs], part, [round_.logps])
        for part in ("train", "dev")
    }
    chat = ModelTokenizer(round_.sft, tokenizer)
    rows["rehearsal"] = train.prepare_rehearsal(cfg, cfg.rehearsal, tmp_path, chat, clear)
    policy = build.load_policy(cfg, round_.sft)
    reference = None if cfg.reference_logps == "none" else round_.sft
    watch = guards.build_guards(cfg, round_.sft, reference, None, rows["dev"], tmp_path)
    trainer, _ = build.build_trainer(cfg, policy, round_.sft, reference, rows, tmp_path, watch)
    policy.train()
    by_ids = {
        tuple(tokenizer.apply_chat_template(turns, return_dict=False)): turns
        for turns in conversations(40, 5)
    }
    expected = [
        nll(policy, tokenizer, by_ids[(*row["prompt_ids"], *row["completion_ids"])])
        for row in trainer.rehearsal.select_rows(0)
    ]
    assert len(expected) == 6  # of eight pairs, three for four

    def losses(rehearsal: Rehearsal | None) -> list[float]:
        trainer.rehearsal = rehearsal
        batches, items = trainer.get_batch_samples(
            iter(trainer.get_train_dataloader()), 2, trainer.args.device
        )
        return [
            trainer.compute_loss(policy, batch, num_items_in_batch=items).item()
            for batch in batches
        ]

    both, alone = losses(trainer.rehearsal), losses(None)
    assert sum(both) / 2 - sum(alone) / 2 == pytest.approx(0.3 * sum(expected) / 6, rel=1e-5)
    assert both[0] - alone[0] == pytest.approx(0.3 * sum(expected[::2]) / 3, rel=1e-4)


@pytest.mark.model
def test_with_a_share_of_demonstrations_less_is_forgotten(
    round_, demonstrations_file, clear, tmp_path
):
    """Other conversations of the same kind, which neither training saw."""
    from pipeline.models import loading

    tokenizer, unseen = loading.load_tokenizer(round_.sft), conversations(20, 6)

    def forgets(model: Model) -> float:
        module = loading.load(model, "float32")
        return sum(nll(module, tokenizer, turns) for turns in unseen) / len(unseen)

    model = round_.train("rehearsed", rehearsal_config(demonstrations_file), decontamination=clear)
    plain = round_.train("plain", rehearsal_config(demonstrations_file, share=0))
    assert forgets(model) < forgets(plain) - 0.1
    curve = metric_by_step(model, "rehearsal/nll")
    assert len(curve) == 6 and curve[6] < curve[1]
    assert json.loads((model.path / "rehearsal" / "funnel.json").read_text()) == {
        "in": 40,
        "out": 40,
        "dropped": {},
    }
    assert not metric_by_step(plain, "rehearsal/nll") and not (plain.path / "rehearsal").exists()


@pytest.mark.model
def test_what_is_learned_does_not_depend_on_how_a_step_is_split(round_, demonstrations_file, clear):
    """Three demonstrations per step, in two micro-batches of two pairs: no even split exists."""
    whole, split = (
        round_.train(
            f"micro-{size}",
            rehearsal_config(demonstrations_file, micro_batch=size),
            decontamination=clear,
        )
        for size in (4, 2)
    )
    assert metric_by_step(split, "loss") == pytest.approx(metric_by_step(whole, "loss"), abs=1e-5)
    assert metric_by_step(split, "rehearsal/nll") == pytest.approx(
        metric_by_step(whole, "rehearsal/nll"), abs=1e-5
    )
    assert published_files(split).keys() == published_files(whole).keys()
    plain = metric_by_step(
        round_.train("unrehearsed", rehearsal_config(demonstrations_file, share=0, micro_batch=4)),
        "loss",
    )
    assert metric_by_step(whole, "loss")[1] == pytest.approx(
        plain[1], abs=1e-5
    )  # that of the pairs, wherever it is looked at


@pytest.mark.slow
@pytest.mark.model
def test_two_processes_rehearse_what_one_does(round_, demonstrations_file, clear):
    one = round_.train(
        "one", rehearsal_config(demonstrations_file, adapter=LORA, share=0.4), decontamination=clear
    )
    two = round_.train(
        "two",
        rehearsal_config(demonstrations_file, adapter=LORA, share=0.4, processes=2),
        decontamination=clear,
    )
    assert metric_by_step(two, "loss") == pytest.approx(metric_by_step(one, "loss"), abs=1e-5)
    assert metric_by_step(two, "rehearsal/nll") == pytest.approx(
        metric_by_step(one, "rehearsal/nll"), abs=1e-5
    )


@pytest.mark.model
def test_demonstrations_behind_the_fence_are_not_rehearsed(round_, demonstrations_file, tmp_path):
    from pipeline.models import loading

    known = conversations(40, 5)
    write_table(
        tmp_path / "ngrams.parquet",
        decontamination.ngram_table(decontamination.hash_ngrams(known[3][0]["content"], 3)),
    )
    cfg = rehearsal_config(demonstrations_file)
    chat = ModelTokenizer(round_.sft, loading.load_tokenizer(round_.sft))
    table = train.prepare_rehearsal(cfg, cfg.rehearsal, tmp_path, chat, Decontamination(tmp_path))
    funnel = json.loads((tmp_path / "rehearsal" / "funnel.json").read_text())
    assert funnel["dropped"]["overlap with evaluation"] >= 1 and funnel["in"] == 40
    assert table.height == funnel["out"] == 40 - sum(funnel["dropped"].values())
    short = rehearsal_config(demonstrations_file, max_length=9)
    with pytest.raises(
        UserError,
        match=r"train.rehearsal: of 40 demonstrations none is left \(overlap .*too long",
    ):
        train.prepare_rehearsal(short, short.rehearsal, tmp_path, chat, Decontamination(tmp_path))
    dropped = read_table(tmp_path / "rehearsal" / DROPPED_FILE)
    assert dropped["detail"].str.contains(r"train\.max_length is 9$").any()
    short = short.mounted_at("train_in_round.2")
    with pytest.raises(UserError, match=r"train_in_round.2.rehearsal: .*(\n.*)*Raise train_in_rou"):
        train.prepare_rehearsal(short, short.rehearsal, tmp_path, chat, Decontamination(tmp_path))
    again = read_table(tmp_path / "rehearsal" / DROPPED_FILE)
    assert again.equals(dropped), "what is published does not know where the block is mounted"


def test_each_pass_takes_every_row_once_in_another_order():
    rows = [{"prompt_ids": [at], "completion_ids": [at]} for at in range(10)]
    rehearsal = Rehearsal(rows, count=4, weight=1.0, seed=0)
    taken = [row["prompt_ids"][0] for step in range(5) for row in rehearsal.select_rows(step)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10)) and taken[:10] != taken[10:]
    assert Rehearsal(rows, 4, 1.0, 0).select_rows(3) == rehearsal.select_rows(
        3
    )  # of a process that has just begun
    shares = rehearsal.split_rows(0, parts=3)
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sum(weight for share in shares for _, weight in share) / 3 == pytest.approx(1.0)


def test_a_share_plans_the_fence_and_no_share_plans_nothing_new():
    training = named(plan(composed(*SMALL, ON)))["train@1"]
    assert [
        (source.stage, part) for name, source, part in training.edges() if name == "decontamination"
    ] == [("prompts", "decontamination")]
    assert "decontamination" not in named(plan(composed(*SMALL)))["train@1"].inputs
    plain = fingerprints(*SMALL)
    assert fingerprints(*SMALL, ON, "train.rehearsal.share=0") == plain
    changed = fingerprints(*SMALL, ON)
    assert changed["train@1"] != plain["train@1"] and changed["pair@1"] == plain["pair@1"]
