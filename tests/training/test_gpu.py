"""Trainings in bfloat16 on the device that is here: bench/gpu.sh runs them on a GPU.

What needs no GPU also runs on a CPU, so that a fault of the tests themselves shows there.
"""

import json
import math

import polars as pl
import pytest
import torch

from pipeline.artifacts import Logps, Model, Pairs, read_table, write_table
from pipeline.config import ReferenceConfig
from pipeline.models import loading, logprobs
from pipeline.stages import reference
from pipeline.training import build
from pipeline.training.monitoring import guards
from pipeline.training.trainers.packed_rows import PackedRows
from tests.support.preferences import FULL, LORA, QLORA, dpo, write_logps, write_pairs
from tests.training.test_guards import Round, metric_by_step

HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu]
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU")
KINDS = {"full": {**FULL, "learning_rate": 3e-3}, "lora": LORA, "qlora": QLORA}
NATS_PER_TOKEN = 0.02  # between two ways to compute in bfloat16


@pytest.fixture(scope="module")
def round_(tmp_path_factory) -> Round:
    return Round(tmp_path_factory.mktemp("store"), hidden=128)


def make_config(kind: str, **changes):
    adapter = {**KINDS[kind]}
    if kind != "full":
        adapter["learning_rate"] = 1e-2
    return dpo(adapter, dtype="bfloat16", epochs=4, gradient_checkpointing=True, **changes)


def measure_reference(round_: Round, kind: str) -> Logps:
    runtime = {"batch_tokens": 512, "workers": 1}
    quantization = KINDS[kind].get("quantization")
    cfg = ReferenceConfig(dtype="bfloat16", quantization=quantization, runtime=runtime)
    folder = round_.store / "reference" / kind
    return reference.run(cfg, folder, model=round_.sft, rows=round_.pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_starts_from_its_reference_and_learns(round_, kind):
    """The stage's own check of the reference passed, and so did its evaluations with answers."""
    logps = [measure_reference(round_, kind)]
    model = round_.train(f"learns-{kind}", make_config(kind), logps=logps)
    losses, evals = metric_by_step(model, "loss"), metric_by_step(model, "eval_loss")
    assert losses[1] == pytest.approx(math.log(2), abs=0.02)
    assert evals[max(evals)] < evals[0] - 0.005
    kl = metric_by_step(model, "eval_kl")
    assert abs(kl[0]) < 0.1 < kl[max(kl)]
    assert compute_logps(loading.load(model, "bfloat16"), round_) != pytest.approx(
        compute_logps(loading.load(round_.sft, "bfloat16"), round_), abs=0.1
    )


def compute_logps(module, round_: Round) -> list[float]:
    """Of the dev pairs' chosen answers."""
    rows = round_.pairs.read_dev()
    ids = rows["prompt_token_ids"].to_list(), rows["chosen_token_ids"].to_list()
    return logprobs.compute_logps(module, *ids, 512)


def test_full_weights_are_published_in_bfloat16_and_an_adapter_in_float32(round_):
    from safetensors.torch import load_file

    for kind, place, dtype in (
        ("full", "weights/model.safetensors", torch.bfloat16),
        ("lora", "adapter/adapter_model.safetensors", torch.float32),
    ):
        logps = [measure_reference(round_, kind)]
        model = round_.train(f"published-{kind}", make_config(kind, batch=24), logps=logps)
        assert {each.dtype for each in load_file(model.path / place).values()} == {dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_only_qlora_on_a_gpu_has_a_paged_optimizer(round_, tmp_path, kind):
    cfg = make_config(kind, batch=24)
    rows = {"train": build_rows(round_, measure_reference(round_, kind), cfg)}
    rows["dev"] = rows["train"].clear()
    policy = build.load_policy(cfg, round_.sft)
    watch = guards.build_guards(cfg, round_.sft, round_.sft, None, rows["dev"], tmp_path)
    given = policy, round_.sft, round_.sft, rows, tmp_path, watch
    trainer, _ = build.build_trainer(cfg, *given)
    trainer.train()
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
        optimizer = optimizer.optimizer
    assert getattr(optimizer, "is_paged", False) == (kind == "qlora" and HAS_GPU)


def build_rows(round_: Round, logps: Logps, cfg):
    from pipeline.stages.train import prepare_pairs

    return prepare_pairs(cfg, [round_.pairs], "train", [logps])


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_sdpa_gives_what_another_attention_gives(round_, attention):
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed, or there is no GPU")
    module = loading.load(round_.sft, "bfloat16")
    assert module.config._attn_implementation == "sdpa"
    found = compute_logps(module, round_)
    module.set_attn_implementation(attention)
    assert module.config._attn_implementation == attention
    tokens = sum(map(len, round_.pairs.read_dev()["chosen_token_ids"]))
    gaps = (abs(a - b) for a, b in zip(found, compute_logps(module, round_), strict=True))
    assert sum(gaps) / tokens < NATS_PER_TOKEN


KERNELS = {
    "flash attention": {"attention": "flash_attention_2"},
    "flex attention": {"attention": "flex"},
    "Liger": {"args": {"use_liger_kernel": True}},
    "activation offloading": {"args": {"activation_offloading": True}},
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_train_as_without_them(round_, name, capfd, monkeypatch):
    """Flash attention packs rows, and flex attention shares prompts: here those are long enough."""
    cfg = make_config("lora", max_length=300, **KERNELS[name])
    if fault := cfg.explain_misfit(int(HAS_GPU)):
        pytest.skip(fault.splitlines()[0])
    pairs = Pairs(round_.store / "pair" / name)
    for part in ("train", "dev"):
        table = read_table(round_.pairs.path / f"{part}.parquet")
        longer = table.with_columns(pl.concat_list(["prompt_token_ids"] * 4))
        write_table(pairs.path / f"{part}.parquet", longer)
    given = {"pairs": [pairs]}
    given["logps"] = [write_logps(round_.store / "logps" / name, round_.sft, pairs, "bfloat16")]
    plain = round_.train(f"without {name}", make_config("lora", max_length=300), **given)
    capfd.readouterr()
    packed, pack = [], PackedRows.forward
    monkeypatch.setattr(
        PackedRows, "forward", lambda self, *given: packed.append(self) or pack(self, *given)
    )
    model = round_.train(f"with {name}", cfg, **given)
    found, expected = (metric_by_step(run, "loss") for run in (model, plain))
    assert found == pytest.approx(expected, abs=0.02)
    notes = capfd.readouterr().err
    assert bool(packed) == (name == "flash attention") and "rows     padded" not in notes
    assert ("computed once for both answers" in notes) == (name != "flash attention")


@needs_gpu
def test_a_gpu_gives_the_cpu_s_log_probabilities_in_float32(round_):
    module = loading.load(round_.sft, "float32")
    found = compute_logps(module, round_)
    assert found == pytest.approx(compute_logps(module.to("cpu"), round_), abs=0.01)


@needs_gpu
def test_a_micro_batch_that_is_too_large_is_halved_until_it_fits(round_, tmp_path):
    """The allocator may take what 8 rows need and some more, and the batch has 64."""
    pairs = write_pairs(tmp_path / "pairs", round_.sft, train=64)
    logps = [write_logps(tmp_path / "logps", round_.sft, pairs, "bfloat16")]

    def train(name: str, rows: int | str) -> Model:
        cfg = dpo(KINDS["full"], micro_batch=rows, dtype="bfloat16", batch=64)
        return round_.train(name, cfg, pairs=[pairs], logps=logps, dev=None)

    peaks = {rows: measure_peak(lambda rows=rows: train(f"rows-{rows}", rows)) for rows in (8, 64)}
    limit = (peaks[8] + peaks[64]) / 2
    torch.cuda.set_per_process_memory_fraction(
        limit / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        model = train("auto", "auto")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    cost = json.loads((model.path / "cost.json").read_text())
    assert cost["micro_batch"] in (8, 16, 32)


def measure_peak(train) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train()
    return torch.cuda.max_memory_reserved()
