"""A mixture of experts: its router's balancing loss is part of every objective."""

import polars as pl
import pytest
import torch

from pipeline.config import TrainConfig
from pipeline.stages import train
from tests.support.preferences import LORA, dpo
from tests.support.tiny import tiny_model
from tests.training.test_guards import Round, metric_by_step
from tests.training.test_own_losses import batch_of

pytestmark = pytest.mark.model

EXPERTS, CHOSEN, COEFFICIENT, ROWS = 4, 2, 0.5, 4
FAMILIES = {
    "olmoe": {"num_experts": EXPERTS},
    "mixtral": {"num_local_experts": EXPERTS},
    "qwen3_moe": {"num_experts": EXPERTS, "moe_intermediate_size": 40, "head_dim": 8},
}
FREE = {"reference_logps": "none"}
KTO = {"trainer": "kto", "loss": ["kto"], "loss_group": ROWS, "reference_logps": "online"}
OBJECTIVES = {
    "dpo": {},
    "online": {"reference_logps": "online"},
    "simpo": {"loss": ["simpo"], **FREE},
    "orpo": {"loss": ["orpo"], "loss_group": ROWS, **FREE},
    "sppo": {"loss": ["sppo"]},
    "weighted": {"weight": {"column": "margin", "scale": 1.0}},
    "kto": KTO,
}


def open_round(store, family: str = "olmoe") -> Round:
    return Round(store, kind=family, num_experts_per_tok=CHOSEN, **FAMILIES[family])


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return open_round(tmp_path_factory.mktemp("store"))


def settings(**changes) -> TrainConfig:
    return dpo(**{"micro_batch": ROWS, "batch": 8, **changes})


def build(round_: Round, cfg: TrainConfig, out):
    from pipeline.training import build
    from pipeline.training.monitoring import guards

    logps = [round_.logps] if cfg.reference_logps == "precomputed" else []
    rows = {
        part: train.prepare_pairs(cfg, [round_.pairs], part, logps) for part in ("train", "dev")
    }
    reference = None if cfg.reference_logps == "none" else round_.sft
    watch = guards.build_guards(cfg, round_.sft, reference, None, rows["dev"], out)
    policy = build.load_policy(cfg, round_.sft)
    return build.build_trainer(cfg, policy, round_.sft, reference, rows, out, watch)[0]


def compute(round_: Round, cfg: TrainConfig, out) -> tuple[float, torch.Tensor, dict]:
    """The loss of the first rows, its gradient at the first router, and TRL's batch."""
    trainer = build(round_, cfg, out)
    trainer.model.train()
    batch = batch_of(trainer, [trainer.train_dataset[row] for row in range(ROWS)])
    with trainer._arrange_rows():
        loss = trainer._compute_loss(trainer.model, dict(batch), False)
    loss.backward()
    return loss.item(), trainer.model.model.layers[0].mlp.gate.weight.grad.clone(), batch


def balance(round_: Round, batch: dict) -> tuple[float, torch.Tensor]:
    """E · Σ fᵢPᵢ of 2101.03961, Eq. 4, over all layers, and its gradient at the first router."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(round_.sft.weights)
    rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model.model(**rows, output_router_logits=True, use_cache=False).router_logits
    is_token = rows["attention_mask"].flatten().bool()
    probabilities = torch.cat([each[is_token].softmax(-1) for each in logits])
    chosen = torch.zeros_like(probabilities)
    chosen.scatter_(1, probabilities.topk(CHOSEN).indices, 1.0)
    loss = EXPERTS * (chosen.mean(0) * probabilities.mean(0)).sum()
    loss.backward()
    return loss.item(), model.model.layers[0].mlp.gate.weight.grad


CASES = [*(("olmoe", name) for name in OBJECTIVES), ("mixtral", "simpo"), ("qwen3_moe", "dpo")]


@pytest.mark.parametrize(("family", "objective"), CASES)
def test_the_balancing_loss_and_its_gradient_are_added(tmp_path, family, objective):
    round_ = open_round(tmp_path, family)
    found = []
    for weight in (COEFFICIENT, 0.0):
        cfg = settings(args={"router_aux_loss_coef": weight}, **OBJECTIVES[objective])
        found.append(compute(round_, cfg, tmp_path / str(weight)))
    (loss, gradient, batch), (plain, plain_gradient, _) = found
    balancing, its_gradient = balance(round_, batch)
    assert loss - plain == pytest.approx(COEFFICIENT * balancing, rel=1e-4)
    assert its_gradient.abs().max() > 1e-4
    assert torch.allclose(gradient - plain_gradient, COEFFICIENT * its_gradient, atol=1e-5)


@pytest.mark.parametrize("adapter", ["full", "lora", "checkpointed"])
def test_a_mixture_is_trained_and_its_load_is_logged(round_, adapter):
    """Its start is checked without the balancing loss, which would be taken for a wrong reference.

    Two micro-batches a step: the load is of both.
    """
    changes = {"full": {}, "lora": {"adapter": LORA}, "checkpointed": {}}[adapter]
    cfg = settings(gradient_checkpointing=adapter == "checkpointed", **changes)
    model = round_.train(adapter, cfg)
    load, entropy = (metric_by_step(model, f"expert_load/{name}") for name in ("max", "entropy"))
    assert list(load) == list(entropy) == list(metric_by_step(model, "aux_loss")) == [1, 2, 3]
    assert all(1 < value <= EXPERTS for value in load.values())
    assert all(0 < value < 1 for value in entropy.values())


def test_the_load_counts_each_token_once(round_, monkeypatch):
    """Not padding, a reference's pass, an evaluation's, or a layer computed again."""
    from pipeline.training.monitoring import expert_load

    counts, describe = [], expert_load.describe_load
    monkeypatch.setattr(
        expert_load, "describe_load", lambda each: counts.append(each) or describe(each)
    )
    round_.train("counted", settings(gradient_checkpointing=True, reference_logps="online"))
    rows = round_.pairs.read_train().select(pl.col("^.*_token_ids$").list.len())
    tokens = 2 * rows["prompt_token_ids"] + rows["chosen_token_ids"] + rows["rejected_token_ids"]
    assert len(counts) == 3
    assert sum(counts).sum(1).tolist() == [CHOSEN * tokens.sum()] * 2  # layers


def test_the_load_of_known_counts():
    from pipeline.training.monitoring.expert_load import count_tokens, describe_load

    logits = torch.tensor([[9.0, 1, 0, 0], [9, 0, 1, 0], [0, 0, 0, 9]])
    assert count_tokens(logits, torch.tensor([1, 1, 0]), 2).tolist() == [2, 1, 1, 0]
    assert describe_load(torch.full((2, 4), 5.0)) == pytest.approx({"max": 1, "entropy": 1})
    one = describe_load(torch.tensor([[8.0, 0, 0, 0], [2, 2, 2, 2]]))
    assert one == pytest.approx({"max": 4, "entropy": 0.5})


@pytest.mark.slow
def test_two_processes_balance_and_count_as_one_with_as_many_micro_batches(round_):
    one = round_.train("one", settings())
    two = round_.train("two", settings(processes=2))
    for figure in ("loss", "aux_loss", "expert_load/max", "expert_load/entropy"):
        ours, theirs = (metric_by_step(run, figure) for run in (two, one))
        assert len(ours) == 3
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_there_is_no_memory_estimate_for_mixtures(tmp_path):
    """It would take each expert for a layer that every token passes."""
    from pipeline.resources.model_shape import read_shape

    for family in FAMILIES:
        model = tiny_model(
            tmp_path / family, kind=family, num_experts_per_tok=CHOSEN, **FAMILIES[family]
        )
        folder = model.weights
        assert "expert" in (folder / "config.json").read_text()
        assert read_shape(folder) is None
