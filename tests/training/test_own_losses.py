"""Losses that TRL does not have any more, weights of pairs, and tokens outside the loss."""

import polars as pl
import pytest
import torch

from pipeline.artifacts import Pairs, write_table
from pipeline.errors import UserError
from pipeline.models import loading
from pipeline.stages import train
from tests.support.house import HOUSE
from tests.training.test_objectives import (
    ROWS,
    Two,
    dpo,
    facts,
    log_sigma,
    loss_of,
    objective,
    token_logps,
)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Two:
    return Two(tmp_path_factory.mktemp("store"))


def batch_of(trainer, rows: list[dict]) -> dict:
    return trainer._prepare_inputs(trainer.data_collator(rows))


def gradient(trainer, loss: torch.Tensor) -> torch.Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])


def gradient_of(trainer, rows: list[dict]) -> torch.Tensor:
    trainer.model.train()
    return gradient(trainer, trainer._compute_loss(trainer.model, batch_of(trainer, rows), False))


# ── the trainers that TRL keeps as experiments ────────────────────────────────────────────────────


def test_nothing_leans_on_an_experiment_of_trl():
    """TRL removes its experiments without notice. What is needed from one belongs into
    training/trainers/losses.py; KTO is in TRL's stable API, and where it leaves that, its loss
    goes the same way."""
    sources = [*(HOUSE / "pipeline").rglob("*.py"), *(HOUSE / "requirements").rglob("*.py")]
    assert [path.name for path in sources if "trl.experimental" in path.read_text()] == []
    from trl import DPOTrainer, KTOTrainer

    overridden = (
        "_compute_loss", "_prepare_dataset", "_precompute_ref_logps",
        "_set_signature_columns_if_needed",
    )  # fmt: skip
    assert all(hasattr(DPOTrainer, name) for name in overridden)
    assert KTOTrainer.__module__ == "trl.trainer.kto_trainer"


SIMPO = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0}
EXPERIMENTS = {
    "simpo": ("cpo", {}, SIMPO),
    "simpo and likelihood": (
        "cpo",
        {"loss": ["simpo", "sft"], "loss_weights": [1.0, 0.5], "loss_group": ROWS},
        {**SIMPO, "cpo_alpha": 0.5},
    ),
    "simpo smoothed": (
        "cpo",
        {"args": {"simpo_gamma": 1.0, "label_smoothing": 0.2}},
        {**SIMPO, "label_smoothing": 0.2},
    ),
    "alphapo": ("cpo", {"args": {"simpo_gamma": 1.0, "alpha": 0.25}}, {**SIMPO, "alpha": 0.25}),
    "cpo": ("cpo", {}, {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "cpo by hinge": ("cpo", {"loss": ["hinge", "sft"]}, {"loss_type": "hinge", "cpo_alpha": 1.0}),
    "cpo by ipo": ("cpo", {"loss": ["ipo", "sft"]}, {"loss_type": "ipo", "cpo_alpha": 1.0}),
    "orpo": ("orpo", {}, {}),
}


@pytest.mark.model
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_loss_and_its_gradient_are_those_of_trl_s_experiment(two, tmp_path, name):
    """Where TRL has removed it, remove its case here: the formulas of test_objectives.py stay."""
    kind, changes, theirs = EXPERIMENTS[name]
    file = name.partition(" ")[0].replace("alphapo", "simpo")
    trainer = two.trainer(objective(file, **changes), tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    loss = loss_of(trainer, rows)
    own = gradient_of(trainer, rows)
    other = experiment(kind, two, rows, tmp_path, beta=objective(file).beta, **theirs)
    batch = other._prepare_inputs(other.data_collator([columns_of(row) for row in rows]))
    found = other.compute_loss(other.model, batch)
    assert loss == pytest.approx(found.item(), abs=1e-5, rel=1e-5)
    expected = gradient(other, found)
    assert (own - expected).norm() <= 1e-4 * expected.norm()


def experiment(kind: str, two: Two, rows: list[dict], out, **arguments):
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer, config = {"cpo": (CPOTrainer, CPOConfig), "orpo": (ORPOTrainer, ORPOConfig)}[kind]

    class OnIds(trainer):
        def tokenize_row(self, feature, model=None):
            return columns_of(feature)

    args = config(
        output_dir=str(out / "theirs"), use_cpu=True, report_to="none",
        gradient_checkpointing=False, bf16=False, remove_unused_columns=False, max_length=128,
        **arguments,
    )  # fmt: skip
    tokenizer = loading.load_tokenizer(two.policy)
    model = loading.load_merged(two.policy)
    data = Dataset.from_list(rows)
    return OnIds(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def columns_of(row: dict) -> dict:
    columns = {}
    for side in ("chosen", "rejected"):
        prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
        columns[f"{side}_input_ids"] = prompt + answer
        columns[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
        columns[f"{side}_labels"] = [-100] * len(prompt) + answer
    return columns


@pytest.mark.model
@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_rewards_without_a_reference_are_means_over_tokens(two, tmp_path, name):
    trainer = two.trainer(objective(name), tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    loss_of(trainer, rows)
    f = facts(trainer.args, two, rows)
    mine, theirs = f.lengths
    up, down = f.chosen / mine, f.rejected / theirs
    metrics = trainer._metrics["eval"]
    assert metrics["rewards/chosen"] == pytest.approx([f.b * up.mean().item()], rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx([f.b * (up - down).mean().item()], rel=1e-3)
    assert metrics["rewards/accuracies"] == [(up > down).double().mean().item()]


@pytest.mark.model
@pytest.mark.parametrize("name", ["soft_dpo", "sppo"])
def test_the_reference_may_be_computed_during_training(two, tmp_path, name):
    online = two.trainer(objective(name, reference_logps="online"), tmp_path / "online")
    ready = two.trainer(objective(name), tmp_path / "ready")
    rows = [ready.train_dataset[i] for i in range(ROWS)]
    bare = [{key: row[key] for key in row if not key.startswith("ref_")} for row in rows]
    assert loss_of(online, bare) == pytest.approx(loss_of(ready, rows), rel=1e-4)


@pytest.mark.model
def test_a_soft_label_of_one_is_the_hard_loss(two, tmp_path):
    for soft, hard in (("soft_dpo", "dpo"), ("soft_ipo", "ipo"), ("sppo", "sppo_hard")):
        trainer = two.trainer(objective(soft), tmp_path / soft)
        rows = [{**trainer.train_dataset[i], "p_chosen": 1.0} for i in range(ROWS)]
        plain = two.trainer(objective(hard), tmp_path / hard)
        assert loss_of(trainer, rows) == pytest.approx(loss_of(plain, rows), rel=1e-5)


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.model
def test_a_weight_multiplies_what_its_pair_teaches(two, tmp_path):
    """In float64: the gradient of Σ w·loss over the pairs, with weights whose mean is 1."""
    from transformers import AutoModelForCausalLM

    cfg = objective("dpo", weight={"column": "margin", "scale": 0.5})
    trainer = two.trainer(cfg, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    powers = two.pairs.read_train()["margin"].to_numpy() ** 0.5
    weights = [row["weight"] for row in rows]
    assert weights == pytest.approx([value / powers.mean() for value in powers[:ROWS]])

    module = AutoModelForCausalLM.from_pretrained(two.policy.weights).double()
    total = torch.zeros(())
    for row, weight in zip(rows, weights, strict=True):
        up, down = (sum_logps(module, row, side) for side in ("chosen", "rejected"))
        delta = (up - row["ref_chosen_logps"]) - (down - row["ref_rejected_logps"])
        total = total - weight * log_sigma(cfg.beta * delta) / ROWS
    total.backward()
    expected = torch.cat([weight.grad.flatten() for weight in module.parameters()])
    assert (gradient_of(trainer, rows) - expected).norm() <= 1e-4 * expected.norm()
    plain = facts(objective("dpo"), two, rows)  # the loss itself is that of pairs without weights
    assert loss_of(trainer, rows) == pytest.approx(dpo(plain).mean().item(), rel=1e-5)


def sum_logps(module, row: dict, side: str) -> torch.Tensor:
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    logs = module(ids).logits[0].log_softmax(-1)[:-1]
    picked = logs[torch.arange(len(logs)), ids[0, 1:]]
    return picked[len(row["prompt_ids"]) - 1 :].sum()


@pytest.mark.model
@pytest.mark.parametrize(
    "name", ["ipo", "wpo", "ld_dpo", "apo_zero", "simpo", "sppo", "reward_aware"]
)
def test_any_objective_takes_weights(two, tmp_path, name):
    """The gradient of a batch is the weighted mean of its pairs' own gradients."""
    plain = two.trainer(objective(name), tmp_path / "plain")
    trainer = two.trainer(
        objective(name, weight={"column": "weight", "scale": 1.0}), tmp_path / "weighted"
    )
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    bare = [{key: row[key] for key in row if key != "weight"} for row in rows]
    alone = [gradient_of(plain, [row]) for row in bare]
    expected = sum(row["weight"] * own for row, own in zip(rows, alone, strict=True)) / ROWS
    assert (gradient_of(trainer, rows) - expected).norm() <= 2e-4 * expected.norm()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, float("nan")] * 8, r"8 of 16 train pairs have no margin \(chosen p1-chosen"),
        ([1.0, None] * 8, r"8 of 16 train pairs have no margin .*\n.*both have a score"),
        ([1.0, -2.0] * 8, r"8 of 16 train pairs have a value below 0 \(the lowest is -2\)"),
        ([0.0] * 16, r"all 16 train pairs weigh 0, so there is nothing to learn"),
    ],
    ids=["nan", "null", "negative", "zero"],
)
def test_weights_that_cannot_be_meant_are_refused(two, tmp_path, values, said):
    pairs = replace_column(two, tmp_path, "margin", values)
    cfg = objective("dpo", weight={"column": "margin", "scale": 1.0})
    with pytest.raises(UserError, match=f"train.weight.column=margin: {said}"):
        train.prepare_pairs(cfg, [pairs], "train", [two.logps])


def test_a_loss_without_its_column_is_refused(two, tmp_path):
    pairs = replace_column(two, tmp_path, "p_chosen", [None] * 16)
    said = r"train.loss=\[sppo\]: 16 of 16 train pairs have no p_chosen .*\n  Give pair.score_scale"
    with pytest.raises(UserError, match=said):
        train.prepare_pairs(objective("sppo"), [pairs], "train", [two.logps])
    write_table(tmp_path / "train.parquet", pairs.read_train().drop("p_chosen"))
    with pytest.raises(UserError, match=said):
        train.prepare_pairs(objective("sppo"), [pairs], "train", [two.logps])


def replace_column(two: Two, folder, name: str, values: list) -> Pairs:
    column = pl.Series(name, values, dtype=pl.Float64)
    write_table(folder / "train.parquet", two.pairs.read_train().with_columns(column))
    return Pairs(folder)


@pytest.mark.model
def test_weights_and_probabilities_reach_the_trainer(two):
    """Through the stage, with the losses of several rounds' pairs in one training."""
    runtime = objective("dpo").runtime.model_copy(update={"micro_batch": 2})
    cfg = objective(
        "soft_dpo", weight={"column": "weight", "scale": 1.0}, runtime=runtime, eval_every=1
    )
    made = two.run(cfg, "weighted")
    plain = two.run(objective("soft_dpo", runtime=runtime, eval_every=1), "unweighted")
    files = [model.weights / "model.safetensors" for model in (made, plain)]
    assert files[0].read_bytes() != files[1].read_bytes()
    first = [next(row["loss"] for row in m.read_metrics() if "loss" in row) for m in (made, plain)]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


# ── tokens outside the loss ───────────────────────────────────────────────────────────────────────


@pytest.mark.model
@pytest.mark.parametrize("name", ["dpo", "rpo", "simpo"])
def test_format_tokens_are_outside_the_loss(two, tmp_path, name):
    """The token that ends an answer, for the policy and its reference alike."""
    changes = {} if name == "simpo" else {"reference_logps": "online"}
    cfg = objective(name, mask={"format_tokens": True}, **changes)
    trainer = two.trainer(cfg, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    special = loading.load_tokenizer(two.policy).all_special_ids
    assert all(row["chosen_ids"][-1] in special for row in rows)

    def kept(model, row: dict, side: str) -> torch.Tensor:
        learned = torch.tensor([token not in special for token in row[f"{side}_ids"]])
        return token_logps(model, row["prompt_ids"], row[f"{side}_ids"])[0][learned]

    sides = {
        (who, side): [kept(model, row, side) for row in rows]
        for who, model in (("policy", two.policy), ("reference", two.reference))
        for side in ("chosen", "rejected")
    }
    sums = {key: torch.stack([each.sum() for each in tokens]) for key, tokens in sides.items()}
    means = {key: torch.stack([each.mean() for each in tokens]) for key, tokens in sides.items()}
    if name == "simpo":
        gap = means["policy", "chosen"] - means["policy", "rejected"]
        expected = -log_sigma(cfg.beta * gap - cfg.args["simpo_gamma"]).mean()
    else:
        up = sums["policy", "chosen"] - sums["reference", "chosen"]
        down = sums["policy", "rejected"] - sums["reference", "rejected"]
        expected = -log_sigma(cfg.beta * (up - down)).mean()
        if name == "rpo":
            expected = expected - torch.cat(sides["policy", "chosen"]).mean()
    assert loss_of(trainer, rows) == pytest.approx(expected.item(), rel=2e-5)
