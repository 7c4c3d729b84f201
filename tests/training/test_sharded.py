"""Training with sharded weights (FSDP2, ZeRO-2 and -3) does what one process does."""

import json
import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from pipeline.artifacts import Model
from pipeline.config import LaunchedRuntime
from pipeline.errors import StageError, UserError
from pipeline.models import loading
from pipeline.training import launch, model_checks
from pipeline.training.distributed import sharded
from tests.support.preferences import FULL, LORA, dpo, write_logps
from tests.support.tiny import tiny_model
from tests.training.test_guards import (
    FAST,
    NEVER,
    Round,
    metric_by_step,
    published_files,
    training_summary,
)

DEEPSPEED = pytest.mark.skipif(
    not find_spec("deepspeed"), reason="deepspeed is optional, and not installed here"
)
SHARING = ["fsdp2", *(pytest.param(name, marks=DEEPSPEED) for name in ("zero2", "zero3"))]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Round:
    """ZeRO-3 does not shard matrices under a hundred thousand numbers: these are larger."""
    return Round(tmp_path_factory.mktemp("wide"), hidden=384, spread=0.05)


def shard_on_a_cpu(monkeypatch) -> None:
    """Lift our check for GPUs and accelerate's: torch can shard over gloo on a CPU."""
    monkeypatch.setattr(launch, "RANK_MODULE", "tests.support.sharded_rank")
    monkeypatch.setattr(LaunchedRuntime, "explain_misfit", lambda *given: None)


@pytest.fixture
def on_a_cpu(monkeypatch) -> None:
    shard_on_a_cpu(monkeypatch)


def furthest(one: Model, other: Model) -> float:
    """The largest difference of a weight between two models that have the same ones."""
    weights, others = (
        dict(loading.load(model, "float32").named_parameters()) for model in (one, other)
    )
    assert weights.keys() == others.keys()
    return max((weight - others[name]).abs().max().item() for name, weight in weights.items())


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_weights_in_shares_train_and_are_published_whole(wide, on_a_cpu, adapter, asked):
    """Over gloo no process has the whole state; what is published equals one process's weights."""
    whole = wide.train(f"whole-{adapter['kind']}-{asked}", dpo(adapter, batch=8))
    shared = wide.train(
        f"shared-{adapter['kind']}-{asked}", dpo(adapter, batch=8, processes=2, launch=asked)
    )
    assert metric_by_step(shared, "loss") == pytest.approx(metric_by_step(whole, "loss"), abs=1e-5)
    assert furthest(shared, whole) < 1e-4


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
def test_weights_in_shares_run_as_many_passes_in_each_process(wide, on_a_cpu, capfd, asked):
    """Rows of unlike length make several; a process that ran more than the other would wait."""
    rows = {"batch": 8, "micro_batch": 4, "shared_prompt": False}
    one_pass = dpo(**{**rows, "micro_batch": 8}, by_length=False)
    whole = wide.train(f"one pass each-{asked}", one_pass)
    capfd.readouterr()
    shared = wide.train(f"several passes-{asked}", dpo(**rows, processes=2, launch=asked))
    text = capfd.readouterr().err
    first, second = (re.findall(rf"rank {rank} runs (\d+) passes", text) for rank in (0, 1))
    assert first == second
    assert max(map(int, first)) > 1
    for figure in ("loss", "grad_norm"):
        ours, theirs = (metric_by_step(run, figure) for run in (shared, whole))
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert furthest(shared, whole) < 1e-4


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_weights_in_shares_train_in_half_precision(wide, on_a_cpu, adapter, asked):
    """Trained weights stay in float32; the base does not."""
    cfg = {"adapter": adapter, "batch": 8, "dtype": "bfloat16"}
    logps = [write_logps(wide.store / "b", wide.sft, wide.pairs, "bfloat16")]
    whole = wide.train(f"half-{adapter['kind']}-{asked}", dpo(**cfg), logps=logps)
    shared = wide.train(
        f"half-shared-{adapter['kind']}-{asked}", dpo(**cfg, processes=2, launch=asked), logps=logps
    )
    assert metric_by_step(shared, "loss") == pytest.approx(metric_by_step(whole, "loss"), abs=2e-2)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
@pytest.mark.parametrize("held_to", ["live", "an adapter", "an adapter's base"])
def test_weights_in_shares_have_any_reference(wide, on_a_cpu, held_to, asked):
    """The trainer's own; one that is loaded for each evaluation; one other than the start."""
    first = wide.train(f"before {held_to} {asked}", dpo(LORA, batch=8))
    logps = [write_logps(wide.store / f"of {held_to} {asked}", first, wide.pairs)]
    cfg, given = {
        "live": ({"adapter": FULL, "reference_logps": "online"}, {"logps": None}),
        "an adapter": ({"adapter": LORA}, {"init": first, "reference": first, "logps": logps}),
        "an adapter's base": ({"adapter": LORA}, {"init": first}),
    }[held_to]
    cfg = {"batch": 8, "eval_every": 1, "guards": {"prompts": 3}, **cfg}
    whole = wide.train(f"one {held_to} {asked}", dpo(**cfg), **given)
    two = dpo(**cfg, processes=2, launch=asked, eval_when_distributed=True)
    shared = wide.train(f"two {held_to} {asked}", two, **given)
    assert metric_by_step(shared, "loss") == pytest.approx(metric_by_step(whole, "loss"), abs=1e-5)
    assert metric_by_step(shared, "eval_kl") == pytest.approx(
        metric_by_step(whole, "eval_kl"), abs=1e-3
    )


OTHERS = {
    "simpo": {"loss": ["simpo"], "reference_logps": "none"},
    "sppo": {"loss": ["sppo"], "beta": 0.1},
    "weighted": {"weight": {"column": "margin", "scale": 0.5}},
    "soft_dpo": {"loss": ["soft_sigmoid"]},
    "soft_ipo": {"loss": ["soft_ipo"]},
    "reward_aware": {"loss": ["reward_aware"], "args": {"reward_scale": 1.0}},
    "cpo": {
        "loss": ["sigmoid", "sft"],
        "loss_weights": [1.0, 1.0],
        "reference_logps": "none",
        "loss_group": 2,
    },
    "orpo": {"loss": ["orpo"], "reference_logps": "none", "loss_group": 2},
    "kto": {
        "trainer": "kto",
        "loss": ["kto"],
        "reference_logps": "online",
        "loss_group": 8,
        "micro_batch": "auto",
    },
    "rpo": {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "loss_group": 2},
    "tr_dpo": {
        "reference_logps": "online",
        "args": {"sync_ref_model": True, "ref_model_sync_steps": 2},
    },
    "checkpointed": {"gradient_checkpointing": True},
}


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
@pytest.mark.parametrize("name", OTHERS)
def test_weights_in_shares_train_by_any_objective(wide, on_a_cpu, name, asked):
    cfg = {"batch": 8, "guards": {"prompts": 2}, **OTHERS[name]}
    given = {"reference": None} if cfg.get("reference_logps") == "none" else {}
    whole = wide.train(f"{name} of one {asked}", dpo(**cfg), **given)
    shared = wide.train(
        f"{name} of two {asked}",
        dpo(**cfg, processes=2, launch=asked, eval_when_distributed=True),
        **given,
    )
    # SPPO's loss is some tens, of which float32 knows the fifth decimal alone.
    assert metric_by_step(shared, "loss") == pytest.approx(
        metric_by_step(whole, "loss"), rel=1e-5, abs=1e-5
    )
    assert furthest(shared, whole) < 1e-4


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
def test_weights_in_shares_are_held_to_their_reference_too(wide, on_a_cpu, asked, tmp_path):
    wrong = write_logps(tmp_path, tiny_model(tmp_path / "sft" / "other", seed=1), wide.pairs)
    with pytest.raises(
        StageError, match=r"the reference is wrong.*before its first step by [\d.]+ nats"
    ):
        wide.train(f"wrong {asked}", dpo(batch=8, processes=2, launch=asked), logps=[wrong])


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", SHARING)
def test_weights_in_shares_stop_where_one_process_does_and_the_best_ones_are_published(
    wide, on_a_cpu, asked
):
    cfg = {**FAST, "learning_rate": 3e-3, "guards": {"stop_on": "loss", "patience": 2}}
    whole = wide.train(f"best of one {asked}", dpo(**cfg))
    shared = wide.train(f"best of two {asked}", dpo(**cfg, processes=2, launch=asked))
    assert (
        training_summary(shared) == training_summary(whole)
        and training_summary(whole)["kept"] < training_summary(whole)["steps"] < 6
    )
    assert furthest(shared, whole) < 1e-3


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", ["torchrun", "ddp", *SHARING])
def test_processes_whose_launcher_is_killed_go_on_to_the_same_weights(
    wide, on_a_cpu, monkeypatch, asked, capfd
):
    cfg = dpo(LORA, processes=2, launch=asked, save_every=2)
    whole = wide.train(f"undisturbed {asked}", cfg)
    monkeypatch.setattr(launch, "RANK_MODULE", "tests.support.killed_rank")
    with pytest.raises(StageError, match=r"2 processes under \w+ ended with"):
        wide.train(f"killed {asked}", cfg)
    assert not (wide.store / "train" / f"killed {asked}" / "model.json").exists()
    monkeypatch.setattr(launch, "RANK_MODULE", "tests.support.sharded_rank")
    capfd.readouterr()
    again = wide.train(f"killed {asked}", cfg)
    said = capfd.readouterr().err
    assert (
        "train 3/6" in said and "train 2/6" not in said
    )  # the finished steps were not taken again
    assert published_files(again) == published_files(whole)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("asked", ["torchrun", *SHARING])
@pytest.mark.parametrize(("adapter", "prompts"), [(FULL, 2), (LORA, 5)], ids=["full", "lora"])
def test_two_processes_that_are_asked_see_the_kl_of_one_and_stop_where_it_does(
    wide, on_a_cpu, adapter, prompts, asked
):
    """Two answers in two processes end at different times; five answers make unequal shares."""
    rate = 5e-4 if adapter == FULL else 5e-3
    rates = {"learning_rate": rate, "warmup": 0.0, "scheduler": "constant", "eval_every": 1}
    guards = {"prompts": prompts, "tokens": 64, "scorer": NEVER}
    called = f"{adapter['kind']} {asked}"
    kl = metric_by_step(
        wide.train(f"seen by one {called}", dpo(adapter, **rates, guards=guards)), "eval_kl"
    )
    over = next(
        step
        for step in range(2, 7)
        if kl[step] > (before := max(kl[at] for at in range(step))) + 0.02
    )
    guards["kl_budget"] = (before + kl[over]) / 2
    one = wide.train(f"stopped by one {called}", dpo(adapter, **rates, guards=guards))
    shared = dpo(
        adapter, **rates, guards=guards, processes=2, eval_when_distributed=True, launch=asked
    )
    two = wide.train(f"stopped by two {called}", shared)
    assert metric_by_step(one, "eval_tokens")[0] < 64
    assert training_summary(two)["steps"] == over == training_summary(one)["steps"]
    assert training_summary(two)["kept"] == over - 1 == training_summary(one)["kept"]
    for figure, slack in (
        ("eval_kl", 1e-3),
        ("eval_tokens", 0),
        ("eval_chosen_logp", 1e-4),
        ("eval_score", 0),
    ):
        assert metric_by_step(two, figure) == pytest.approx(metric_by_step(one, figure), abs=slack)
    assert (two.path / "answers.jsonl").read_bytes() == (one.path / "answers.jsonl").read_bytes()
    assert furthest(two, one) < 1e-3


def test_a_reference_in_few_bits_is_not_taken_apart(tmp_path):
    packed = tiny_model(tmp_path / "train" / "packed")
    quantization = {"bits": 4, "double": True, "dtype": "float32"}
    (packed.path / "model.json").write_text(
        json.dumps({**packed.record, "quantization": quantization})
    )
    model_checks.check_shardable(dpo(launch="zero2"), packed)
    with pytest.raises(
        UserError,
        match=r"fsdp2 shares the reference's weights too, and those under train/packed are",
    ):
        model_checks.check_shardable(dpo(launch="fsdp2"), Model(packed.path))


def test_weights_that_are_gathered_under_other_names_are_no_trained_ones():
    """A tied weight may come under one of its names. Processes that gather nothing hold nothing."""
    module = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)}
    )
    module["b"].weight = module["a"].weight
    trainer, weight = SimpleNamespace(model=module), torch.ones(2, 2)
    assert set(sharded.select_trained(trainer, None)) == {"a.weight", "b.weight"}
    assert sharded.select_trained(trainer, {}) == {}
    assert sharded.select_trained(trainer, {"a.weight": weight, "frozen": weight}) == {
        "a.weight": weight
    }
    with pytest.raises(StageError, match=r"lack a.weight: what is kept"):
        sharded.select_trained(trainer, {"module.a.weight": weight})
