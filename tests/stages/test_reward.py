"""The stage `reward`: what it learns from, what it leaves out, what it publishes, and what wrong
labels cost."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.artifacts import Model
from pipeline.config import PlaygroundPreferences, RewardTraining
from pipeline.data import synthetic
from pipeline.data.reward_rows import read_reward_rows
from pipeline.errors import StageError, UserError
from pipeline.scorers import Answer
from pipeline.scorers.rules import check_playground as rule
from pipeline.stages import reward
from tests.scorers.test_reward_model import checkpoint, run_scorer, scorer
from tests.stages.test_sft import edit, fenced, hashes
from tests.support.tiny import CHAT, tiny_model

model = pytest.mark.model


def pairs_of(
    rows: int = 96, flipped: float = 0.0, seed: int = 0, constraints: int = 3
) -> PlaygroundPreferences:
    return PlaygroundPreferences(
        kind="playground",
        rows=rows,
        constraints=constraints,
        obeyed=0.5,
        flipped=flipped,
        seed=seed,
    )


def training(**changes: Any) -> RewardTraining:
    values = {
        "kind": "train",
        "start": "base",
        "data": pairs_of().model_dump(),
        "learn_from": "pairs",
        "held_out": {"share": 0.2, "min": 16, "max_share": 0.3},
        "decontamination": {"ngram": 13},
        "template_kwargs": {},
        "learning_rate": 1e-3,
        "epochs": 1.0,
        "batch": 16,
        "scheduler": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "max_length": 512,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "seed": 0,
        "runtime": {"micro_batch": 16, "save_every": 2, "tracker": None},
    }
    return RewardTraining(**{**values, **changes})


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("store") / "sft" / "aaaaaaaaaaaa", context=512)


def train(cfg: RewardTraining, out: Path, start: Model, texts: list[str] | None = None) -> Model:
    return reward.run(
        cfg, out, start=start, decontamination=fenced(out.parent / "decontamination", texts or [])
    )


def told(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


# ── the playground's preferences ──────────────────────────────────────────────────────────────────


def test_the_rule_prefers_what_is_chosen_except_where_the_label_is_flipped() -> None:
    rows = list(synthetic.generate_preferences(pairs_of(400, flipped=0.2)))
    for row in rows:
        chosen, rejected = (rule(row[side], row["columns"])[""] for side in ("chosen", "rejected"))
        assert (chosen, rejected) == pytest.approx((row["chosen_score"], row["rejected_score"]))
        assert (chosen < rejected) == row["flipped"] and chosen != rejected
    assert 0.14 < sum(row["flipped"] for row in rows) / 400 < 0.26


def test_more_flips_change_labels_alone_and_keep_those_that_were_wrong() -> None:
    few, many = (
        list(synthetic.generate_preferences(pairs_of(200, flipped=share))) for share in (0.1, 0.3)
    )
    for a, b in zip(few, many, strict=True):
        assert a["prompt"] == b["prompt"] and {a["chosen"], a["rejected"]} == {
            b["chosen"],
            b["rejected"],
        }
        assert b["flipped"] or not a["flipped"]


def test_preferences_are_no_repetition_of_the_demonstrations_or_prompts() -> None:
    asked = {row["prompt"][0]["content"] for row in synthetic.generate_preferences(pairs_of(200))}
    assert not asked & {
        row["prompt"][0]["content"] for row in synthetic.generate_prompts(200, 3, 0)
    }


# ── rows that somebody brings ─────────────────────────────────────────────────────────────────────

ASKED = [{"role": "user", "content": "Which river is slow?"}]


def given(tmp_path: Path, rows: list[dict], **changes: Any) -> dict[str, Any]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "kind": "given",
        "source": {"kind": "file", "path": str(file)},
        "shape": "auto",
        "columns": {},
    }
    return {**values, "unpaired_threshold": None, "on_bad_row": "fail", **changes}


def preferred(at: int, good: str = "The Nile.", bad: str = "No.") -> dict:
    return {"prompt": f"Question {at}?", "chosen": good, "rejected": bad}


def test_pairs_and_thumbs_are_read_and_pairs_have_two_sides(tmp_path: Path) -> None:
    pair = training(data=given(tmp_path, [preferred(1)])).data
    [row] = read_reward_rows(pair, "pairs").rows
    assert (row["good"], row["bad"], row["flipped"]) == ("The Nile.", "No.", None)
    assert [(r["good"], r["bad"]) for r in read_reward_rows(pair, "unpaired").rows] == [
        ("The Nile.", None),
        (None, "No."),
    ]
    thumbs = [
        {"prompt": ASKED, "completion": text, "label": label}
        for text, label in (("a", True), ("b", False))
    ]
    rows = read_reward_rows(training(data=given(tmp_path, thumbs)).data, "unpaired").rows
    assert [(row["good"], row["bad"]) for row in rows] == [("a", None), (None, "b")]
    with pytest.raises(UserError, match=r"reward.data.source.path=.*rows.jsonl: 1 of 1 row "):
        read_reward_rows(
            training(data=given(tmp_path, [{**preferred(1), "rejected": ""}])).data, "pairs"
        )


@model
def test_thumbs_alone_make_no_pairs(tmp_path: Path, start: Model) -> None:
    data = given(tmp_path, [{"prompt": ASKED, "completion": "a", "label": True}])
    with pytest.raises(
        UserError, match=r"of 0 rows of pairs none is left.*\n.*reward.learn_from=unpaired"
    ):
        train(training(data=data), tmp_path / "out", start)


# ── what is left out ──────────────────────────────────────────────────────────────────────────────


@model
def test_what_overlaps_an_evaluation_prompt_is_too_long_or_doubles_bos_is_left_out(
    tmp_path: Path, start: Model
) -> None:
    fenced_words = "a river so slow that nobody has ever seen it move on any day of the year"
    rows = [
        *(preferred(at) for at in range(60)),
        preferred(60, good=f"It is {fenced_words}."),
        {**preferred(61), "prompt": fenced_words.upper()},
        preferred(62, bad="word " * 200),
        preferred(63, bad="<s> once more"),
    ]
    made = train(
        training(data=given(tmp_path, rows), max_length=256),
        tmp_path / "out",
        start,
        [fenced_words],
    )
    dropped = pl.read_parquet(made.path / "dropped.parquet").select("row", "reason").rows()
    overlap = "overlap with evaluation"
    assert dropped == [(61, overlap), (62, overlap), (63, "too long"), (64, "unreadable")]
    assert told(made.path, "funnel.json") == {
        "in": 64, "out": 60, "dropped": {overlap: 2, "too long": 1, "unreadable": 1}
    }  # fmt: skip


# ── what is held out ──────────────────────────────────────────────────────────────────────────────


def example(prompt: str, good: str, bad: str) -> dict[str, Any]:
    return {"prompt_id": prompt, "answers": [good, bad]}


HELD = {"share": 0.2, "min": 2, "max_share": 0.2}


def test_one_neutral_prompt_for_all_rows_is_held_out_by_answers() -> None:
    rows = [example("neutral", f"good {at}", f"bad {at}") for at in range(50)]
    rows += [rows[0], rows[1]]  # what repeats stays on one side
    learned, held = reward.split_held_out(training(held_out=HELD), rows)
    assert len(learned) + len(held) == 52 and 10 <= len(held) <= 12
    sides = [{tuple(one["answers"]) for one in part} for part in (learned, held)]
    assert not sides[0] & sides[1]
    assert reward.count_familiar(learned, held) == {
        "of_learned_prompts": len(held), "answers": 20, "learned_answers": 0,
    }  # fmt: skip
    said = reward.describe_accuracy(
        {"held_out": 10, "accuracy": 0.8} | reward.count_familiar(learned, held)
    )
    assert (
        "under prompts that it learned from" in said
        and "none of their answers was learned from" in said
    )


def test_many_prompts_are_held_out_whole_though_one_of_them_is_the_neutral_one() -> None:
    rows = [example("neutral", f"good {at}", f"bad {at}") for at in range(60)]
    rows += [example(f"prompt {at % 20}", f"yes {at}", f"no {at}") for at in range(40)]
    learned, held = reward.split_held_out(training(held_out={**HELD, "share": 0.2}), rows)
    both = {one["prompt_id"] for one in learned} & {one["prompt_id"] for one in held}
    assert both == {"neutral"} and any(one["prompt_id"] != "neutral" for one in held)


def test_held_out_answers_that_were_learned_from_elsewhere_are_counted() -> None:
    """Every rejected answer is the same refusal, and each prompt has its own chosen one."""
    rows = [example(f"prompt {at}", f"good {at}", "I cannot.") for at in range(40)]
    learned, held = reward.split_held_out(training(held_out=HELD), rows)
    assert len(held) == 8 and all(one["familiar"] for one in held)
    figures = reward.count_familiar(learned, held)
    assert figures == {"of_learned_prompts": 0, "answers": 9, "learned_answers": 1}
    said = reward.describe_accuracy({"held_out": 8, "accuracy": 0.9} | figures)
    assert "1 of their 9 answers were learned from too" in said and "no row is free of them" in said
    unlike = [example(f"prompt {at}", f"good {at}", f"bad {at}") for at in range(40)]
    assert not any(
        one["familiar"] for one in reward.split_held_out(training(held_out=HELD), unlike)[1]
    )


@model
def test_a_reward_model_of_one_neutral_prompt_is_trained_and_says_what_it_was_held_to(
    tmp_path: Path, start: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    same = [
        preferred(0, good=f"Yes, river {at % 10 if at < 40 else at}.", bad=f"No, nothing of {at}.")
        for at in range(80)
    ]
    made = train(training(data=given(tmp_path, same)), tmp_path / "out", start)
    figures = told(made.path, "held_out.json")
    assert figures["held_out"] == figures["of_learned_prompts"] > 0
    assert (
        0 < figures["learned_answers"] < figures["answers"]
        and figures["held_out_new"] < figures["held_out"]
    )
    assert figures.items() <= told(made.path, "cost.json").items()
    assert (
        "│ agrees with" in (said := capfd.readouterr().err)
        and "under prompts that it learned from" in said
    )


# ── training ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(start, tmp_path_factory) -> Model:
    return train(training(), tmp_path_factory.mktemp("reward") / "whole", start)


def asked_of(rows: list[dict], side: str) -> list[Answer]:
    return [Answer(f"{at}", "p", row["prompt"], row[side], {}) for at, row in enumerate(rows)]


@model
def test_the_accuracy_it_tells_is_that_of_its_scorer_on_prompts_it_never_learned_from(
    made: Model, start: Model
) -> None:
    """Text by text through the scorer: what is scored is what was trained."""
    from pipeline.data.prompts import build_prompt_row
    from pipeline.pairing.split import hold_out

    cfg = training()
    rows = {
        build_prompt_row(row["prompt"], {})["prompt_id"]: row
        for row in synthetic.generate_preferences(pairs_of())
    }
    apart = [rows[name] for name in sorted(hold_out(rows, cfg.held_out, cfg.seed))]
    good, bad = (
        [m.score for m in run_scorer(made.weights, asked_of(apart, s)).values()]
        for s in ("chosen", "rejected")
    )
    figures = told(made.path, "held_out.json")
    assert figures["held_out"] == len(apart) == 19
    assert (
        figures["accuracy"]
        == sum(a > b for a, b in zip(good, bad, strict=True)) / 19
        == figures["gold_accuracy"]
    )
    assert figures.items() <= told(made.path, "cost.json").items()
    assert max(line["step"] for line in made.read_metrics()) == math.ceil((96 - 19) / 16)


@model
def test_training_stopped_after_a_checkpoint_ends_with_the_bytes_of_an_uninterrupted_one(
    made: Model, start: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback

    from pipeline.training.trainers import reward as room

    class PowerCut(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        original = room.build_trainer

        def and_cut(*args: Any) -> Any:
            trainer, ledger = original(*args)
            trainer.add_callback(PowerCut())
            return trainer, ledger

        patch.setattr(room, "build_trainer", and_cut)
        with pytest.raises(KeyboardInterrupt):
            train(training(), tmp_path / "cut", start)
    assert hashes(train(training(), tmp_path / "cut", start).path) == hashes(made.path)
    assert "weights/model.safetensors" in hashes(made.path)


@model
@pytest.mark.parametrize("learn_from", ["pairs", "unpaired"])
def test_half_the_micro_batch_gives_the_same_losses(
    tmp_path: Path, start: Model, learn_from: str
) -> None:
    def losses(micro_batch: int) -> list[float]:
        runtime = {"micro_batch": micro_batch, "save_every": 100, "tracker": None}
        cfg = training(learn_from=learn_from, runtime=runtime)
        return [
            line["loss"] for line in train(cfg, tmp_path / f"{micro_batch}", start).read_metrics()
        ]

    assert losses(8) == pytest.approx(losses(16), rel=1e-4)


@model
def test_thumbs_are_learned_by_the_binary_cross_entropy_of_the_score(
    tmp_path: Path, start: Model
) -> None:
    """The first loss is that of the untrained head, computed by hand; afterwards liked answers
    score above zero."""
    import torch

    from pipeline.models import loading
    from pipeline.training.trainers import reward as room

    rows = [
        preferred(at, good=f"Yes, river {at}.", bad=f"No, nothing of {at}.") for at in range(80)
    ]
    cfg = training(
        data=given(tmp_path, rows), learn_from="unpaired", epochs=4.0, learning_rate=3e-3
    )
    tokenizer, module = loading.load_tokenizer(start), room.load(start, cfg.seed)
    examples = [{"good_ids": [1, 7, 9, 30], "bad_ids": None}, {"good_ids": None, "bad_ids": [1, 8]}]
    trainer, _ = room.build_trainer(cfg, module, tokenizer, examples, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_batch_loss(module.eval(), dict(batch)).item()
        scores = [module(torch.tensor([ids])).logits.item() for ids in ([1, 7, 9, 30], [1, 8])]
    assert loss == pytest.approx(
        (math.log1p(math.exp(-scores[0])) + math.log1p(math.exp(scores[1]))) / 2, rel=1e-4
    )

    made = train(cfg, tmp_path / "out", start)
    assert told(made.path, "held_out.json")["accuracy"] > 0.95
    assert "gold_accuracy" not in told(made.path, "held_out.json")


@model
def test_a_pad_token_that_ends_texts_is_not_where_a_reward_is_read(tmp_path: Path) -> None:
    """transformers' own pooling, which anyone who opens the published model uses, reads what ours
    reads."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    start = tiny_model(tmp_path / "store" / "sft" / "bbbbbbbbbbbb", context=512)
    edit(start.tokenizer / "tokenizer_config.json", pad_token="<|end|>")
    made = train(training(), tmp_path / "out", start)
    said = asked_of(list(synthetic.generate_preferences(pairs_of(8))), "chosen")
    ours = [mark.score for mark in run_scorer(made.weights, said).values()]
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer)
    opened = AutoModelForSequenceClassification.from_pretrained(made.weights)
    assert tokenizer.pad_token_id == opened.config.pad_token_id != tokenizer.eos_token_id
    chats = [[*one.prompt, {"role": "assistant", "content": one.completion}] for one in said]
    batch = tokenizer.apply_chat_template(
        chats, return_tensors="pt", return_dict=True, padding=True
    )
    with torch.no_grad():
        assert opened.eval()(**batch).logits.squeeze(-1).tolist() == pytest.approx(ours, abs=1e-4)


@model
def test_a_tokenizer_with_no_token_to_pad_with_is_refused(tmp_path: Path) -> None:
    start = tiny_model(
        tmp_path / "store" / "sft" / "cccccccccccc", template=CHAT.replace("{{ bos_token }}", "")
    )
    edit(start.tokenizer / "tokenizer_config.json", pad_token="<|end|>", bos_token=None)
    with pytest.raises(
        UserError, match=r"no pad token that is not also a text's last token.*\n?.*Set pad_token"
    ):
        train(training(max_length=256), tmp_path / "out", start)


@model
def test_a_loss_that_is_no_number_publishes_nothing(tmp_path: Path, start: Model) -> None:
    with pytest.raises(StageError, match="not finite|is nan|is inf"):
        train(training(learning_rate=1e30, clip=1e30), tmp_path / "out", start)
    assert not (tmp_path / "out" / "model.json").exists()
    assert not (tmp_path / "out" / "weights").exists()


@model
def test_the_stage_refuses_a_language_model_as_a_checkpoint(tmp_path: Path, start: Model) -> None:

    with pytest.raises(UserError, match="not a reward model"):
        reward.run(checkpoint(start.weights), tmp_path / "out")
    with pytest.raises(UserError, match="has no model"):
        list(scorer(None).score([]))


SEEDS = 3  # one training's luck is as large as the effect: their means are compared


@pytest.mark.slow
@model
def test_a_proxy_of_wrong_labels_agrees_less_with_the_gold_rule(tmp_path: Path) -> None:
    """Learned from 200 pairs, of which a fifth has the wrong label; judged on 1,000 others by the
    rule."""
    from pipeline.stages import base
    from tests.stages.test_sft import TINY

    start = base.run(
        TINY.model_copy(update={"vocabulary": 1024, "context": 512}), tmp_path / "base" / "tiny"
    )

    def agreement(flipped: float) -> float:
        found = []
        for seed in range(SEEDS):
            data = pairs_of(1200, flipped, seed, constraints=6).model_dump()
            apart = {"share": 0.8, "min": 1000, "max_share": 0.9}
            steps = {"learning_rate": 5e-3, "epochs": 15, "batch": 20}
            runtime = {"micro_batch": 20, "save_every": 1000, "tracker": None}
            cfg = training(data=data, held_out=apart, seed=seed, runtime=runtime, **steps)
            made = train(cfg, tmp_path / f"{flipped}-{seed}", start)
            found.append(told(made.path, "held_out.json")["gold_accuracy"])
        return sum(found) / SEEDS

    noisy, clean = agreement(0.2), agreement(0.0)
    assert noisy < clean, (noisy, clean)
