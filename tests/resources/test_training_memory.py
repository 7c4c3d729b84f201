"""What a training is said to hold: against the bytes of every tensor that a real training of it
held at its fullest."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Model, Pairs, write_json, write_table
from pipeline.config import TrainConfig
from pipeline.driver import child_process
from pipeline.resources import model_shape, training_memory
from pipeline.resources.model_shape import read_shape
from tests.support.house import HOUSE, SMALL, composed
from tests.support.preferences import FULL, LORA, QLORA, dpo, text, write_logps
from tests.support.tiny import tiny_tokenizer

pytestmark = pytest.mark.model

RANK_16 = {**LORA, "rank": 16}
LONGEST, PROMPT = 128, 40
# Widths as of Llama 3.2 1B, divided by eight; a vocabulary of a few thousand, so that logits weigh
# as they do there.
WIDTHS = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "head_dim": 32,
    "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 2 * LONGEST,
}  # fmt: skip
KINDS = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "attn_implementation": "sdpa"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    from transformers import AutoConfig, AutoModelForCausalLM

    store, made = tmp_path_factory.mktemp("store"), {}
    for name, (kind, more) in KINDS.items():
        step = store / "sft" / name
        tiny_tokenizer(step / "weights")
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **WIDTHS, **more)
        ).save_pretrained(step / "weights")
        write_json(step / "model.json", {"weights": "weights", "tokenizer": "weights"})
        made[name] = Model(step)
    return made


@pytest.fixture(autouse=True)
def narrow_tiles(monkeypatch):
    """Without, what a CPU makes of a tile of logits is so large here that it hides all else."""
    monkeypatch.setattr("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE", 128)
    monkeypatch.setattr(training_memory, "TILE_COLUMNS", 128)


def settled(adapter: dict[str, Any], **changes) -> TrainConfig:
    """Two micro-batches a step."""
    usual = {
        "dtype": "bfloat16",
        "max_length": LONGEST,
        "by_length": False,
        "shared_prompt": False,
        "batch": 4,
        "micro_batch": 2,
    }
    return dpo(adapter, **{**usual, "save_every": 100, **changes})


def rows_for(cfg: TrainConfig, least: int):
    """As the trainers read them; every other row has `LONGEST` tokens, the rest are padded to
    it."""
    import polars as pl

    draw = random.Random(0)

    def row(number: int, sides: list[str]) -> dict[str, Any]:
        length = least if number % 2 else LONGEST
        ids = {
            f"{side}_ids": [draw.randrange(10, 300) for _ in range(length - PROMPT)]
            for side in sides
        }
        return {"prompt_ids": [1] * PROMPT, **ids}

    count = range(2 * cfg.batch)
    if cfg.trainer == "kto":
        sides = ["completion", "KL_completion"]
        return {
            "train": pl.DataFrame(
                [{**row(number, sides), "label": number % 4 < 2} for number in count]
            )
        }
    ready = (
        {"ref_chosen_logps": -500.0, "ref_rejected_logps": -500.0}
        if cfg.reference_logps == "precomputed"
        else {}
    )
    demonstrations = pl.DataFrame([row(2 * number, ["completion"]) for number in count])
    train = pl.DataFrame([{**row(number, ["chosen", "rejected"]), **ready} for number in count])
    return {"train": train, "rehearsal": demonstrations}


def measured(cfg: TrainConfig, init: Model, out: Path, least: int = LONGEST - 5) -> int:
    """The most bytes at once, from the reading of the weights to the end of the second optimizer
    step."""
    from pipeline.training import build
    from pipeline.training.monitoring import guards
    from tests.support.bytes_held import BytesHeld

    rows = rows_for(cfg, least)
    rows["dev"] = rows["train"].clear()
    # Ready values are made up here: of another model than this, nobody compares them before the
    # first step.
    reference = {"precomputed": Model(init.path.parent), "online": init, "none": None}[
        cfg.reference_logps
    ]
    with BytesHeld() as held:
        policy = build.load_policy(cfg, init)
        watch = guards.build_guards(cfg, init, reference, None, rows["dev"], out)
        build.build_trainer(cfg, policy, init, reference, rows, out, watch)[0].train()
    return held.most


def estimated(cfg: TrainConfig, init: Model) -> training_memory.MemoryEstimate:
    shape = read_shape(Path(init.weights))
    assert shape
    *step, _ = training_memory.ProcessMemory(
        shape, cfg, cfg.runtime.per_device, LONGEST, 1, gpu=False
    ).moments()
    return max(step, key=lambda moment: moment.total)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [FULL, RANK_16], ids=["full", "lora"])
def test_bytes_of_two_steps(models, tmp_path, adapter, dtype, checkpointing):
    cfg = settled(adapter, dtype=dtype, gradient_checkpointing=checkpointing)
    assert estimated(cfg, models["tied"]).total == pytest.approx(
        measured(cfg, models["tied"], tmp_path), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("tied", 2), ("untied", 2), ("untied", 4)])
def test_bytes_of_an_output_layer_and_of_gradients_that_accumulate(models, tmp_path, name, batch):
    cfg = settled(FULL, gradient_checkpointing=True, batch=batch)
    assert estimated(cfg, models[name]).total == pytest.approx(
        measured(cfg, models[name], tmp_path), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter"), [("qwen3", FULL), ("gemma2", RANK_16)], ids=["qwen3", "gemma2"]
)
def test_bytes_of_blocks_with_more_norms(models, tmp_path, name, adapter):
    cfg = settled(adapter)
    assert estimated(cfg, models[name]).total == pytest.approx(
        measured(cfg, models[name], tmp_path), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "changes"),
    [
        (FULL, {"loss": ["simpo"], "reference_logps": "none"}),
        (RANK_16, {"loss": ["orpo"], "reference_logps": "none", "loss_group": 2}),
        (
            RANK_16,
            {
                "trainer": "kto",
                "loss": ["kto"],
                "reference_logps": "online",
                "loss_group": 4,
                "micro_batch": 4,
            },
        ),
    ],
    ids=["simpo", "orpo", "kto"],
)
def test_bytes_of_other_objectives(models, tmp_path, adapter, changes):
    cfg = settled(adapter, **changes)
    assert estimated(cfg, models["tied"]).total == pytest.approx(
        measured(cfg, models["tied"], tmp_path), rel=0.05
    )


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize(
    "adapter",
    [
        {**RANK_16, "dora": True},
        {**RANK_16, "targets": ["q_proj", "v_proj"]},
        {**QLORA, "rank": 16},
        {**QLORA, "rank": 16, "quantization": {"bits": 8, "double": False}},
    ],
    ids=["dora", "two layers", "4 bits", "8 bits"],
)
def test_bytes_of_other_adapters(models, tmp_path, adapter, checkpointing):
    cfg = settled(adapter, gradient_checkpointing=checkpointing)
    assert estimated(cfg, models["tied"]).total == pytest.approx(
        measured(cfg, models["tied"], tmp_path), rel=0.05
    )


@pytest.mark.slow
def test_bytes_of_a_whole_tile_of_logits(models, tmp_path, monkeypatch):
    monkeypatch.undo()
    cfg = settled(RANK_16, gradient_checkpointing=True)
    assert estimated(cfg, models["tied"]).logits > 0.5 * estimated(cfg, models["tied"]).total
    assert estimated(cfg, models["tied"]).total == pytest.approx(
        measured(cfg, models["tied"], tmp_path), rel=0.05
    )


@pytest.mark.slow
def test_bytes_of_demonstrations_beside_the_pairs(models, tmp_path):
    rehearsal = composed(
        *SMALL, "+rehearsal@train.rehearsal=default", "train.rehearsal.share=0.5"
    ).train.rehearsal
    cfg = settled(FULL).model_copy(update={"rehearsal": rehearsal})
    assert estimated(cfg, models["tied"]).total == pytest.approx(
        measured(cfg, models["tied"], tmp_path), rel=0.1
    )


@pytest.mark.slow
def test_rows_that_share_a_pass_with_others_of_their_length_take_no_more_than_is_said(
    models, tmp_path
):
    cfg = settled(FULL, by_length=True)
    found = measured(cfg, models["tied"], tmp_path, least=LONGEST // 2)
    assert (
        0.7 * estimated(cfg, models["tied"]).total
        < found
        < 1.02 * estimated(cfg, models["tied"]).total
    )


def test_ddp_holds_a_copy_of_the_gradients(tmp_path):
    import torch
    from torch import distributed

    from tests.support.bytes_held import BytesHeld

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with BytesHeld() as held:
            alone = torch.nn.Linear(512, 512, bias=False)
            module = torch.nn.parallel.DistributedDataParallel(alone)
            module(torch.ones(1, 512)).sum().backward()
        assert held.held == pytest.approx(
            3 * 4 * 512 * 512, rel=0.01
        )  # weights, gradients, buckets
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_a_look(models, tmp_path, dtype):
    """Through accelerate's wrapper, which gives logits back in float32."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from pipeline.models.logprobs import compute_logps
    from pipeline.training import build
    from tests.support.bytes_held import BytesHeld

    cfg = settled(RANK_16, dtype=dtype)
    init = models["tied"]
    policy = build.load_policy(cfg, init).eval()
    AcceleratorState._reset_state(
        True
    )  # of the trainings before, which may have been in another precision
    module = Accelerator(
        cpu=True, mixed_precision="bf16" if dtype == "bfloat16" else "no"
    ).prepare_model(policy)
    with BytesHeld() as held:
        for weight in module.parameters():
            held.see(weight)
        compute_logps(module, [[1] * 2] * 3, [[5] * (LONGEST - 2)] * 3, cfg.max_length)
    shape = read_shape(Path(init.weights))
    *_, look = training_memory.ProcessMemory(shape, cfg, 4, LONGEST, 1, gpu=False).moments()
    assert look.logits == pytest.approx(held.most - held.held, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel does not tell a process' peak here"
)
@pytest.mark.parametrize("rows", [8, 2])
@pytest.mark.parametrize("adapter", [FULL, RANK_16], ids=["full", "lora"])
def test_a_whole_process_on_a_cpu_comes_to_what_the_plan_tells(tmp_path, adapter, rows):
    """As the kernel counts it: libraries, weights as they are read, what the allocator keeps, and
    every moment."""
    import polars as pl
    from transformers import LlamaConfig, LlamaForCausalLM

    init = Model(tmp_path / "sft" / "model")
    tiny_tokenizer(init.path / "weights")
    widths = {**WIDTHS, "num_hidden_layers": 12, "vocab_size": 16384, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**widths)).save_pretrained(init.path / "weights")
    write_json(init.path / "model.json", {"weights": "weights", "tokenizer": "weights"})
    write_table(
        tmp_path / "pairs" / "train.parquet", table := pl.DataFrame(long_pairs(init, 2 * rows))
    )
    write_table(tmp_path / "pairs" / "dev.parquet", table.clear())
    write_logps(tmp_path / "logps", init, Pairs(tmp_path / "pairs"))
    cfg = dpo(
        {**adapter, "learning_rate": 1e-5},
        batch=rows,
        micro_batch=rows,
        guards={"prompts": 0},
        shared_prompt=False,
    )
    cfg = cfg.model_copy(update={"gradient_checkpointing": True, "max_length": LONGEST})
    write_json(tmp_path / "config.json", cfg.model_dump(mode="json"))

    run = [sys.executable, "-m", "tests.support.whole_training", str(tmp_path)]
    environment = {**child_process.ENVIRONMENT, **os.environ, "CUDA_VISIBLE_DEVICES": ""}
    shown = subprocess.run(
        run, cwd=HOUSE, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = int(shown.splitlines()[-1])
    told = (
        json.loads((tmp_path / "train" / "adapter" / "cost.json").read_text())[
            "memory_estimate_gib"
        ]
        * model_shape.GIB
    )
    assert told == pytest.approx(found, rel=0.1)


def long_pairs(model: Model, count: int) -> list[dict[str, Any]]:
    """Both sides of each have `LONGEST` tokens, prompt and answer together."""
    from transformers import AutoTokenizer

    tokenizer, draw, rows = AutoTokenizer.from_pretrained(model.tokenizer), random.Random(0), []
    for number in range(count):
        row: dict[str, Any] = {
            "prompt_id": f"p{number}",
            "prompt": [{"role": "user", "content": "name"}],
        }
        row["prompt_token_ids"] = [10 + number] * PROMPT
        for side in ("chosen", "rejected"):
            ids = tokenizer(text(draw, LONGEST, LONGEST))["input_ids"][: LONGEST - PROMPT]
            row[side] = [{"role": "assistant", "content": tokenizer.decode(ids)}]
            row |= {f"{side}_id": f"{number}-{side}", f"{side}_token_ids": ids}
        rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [FULL, {**RANK_16, "save_merged": True}], ids=["full", "lora"])
def test_bytes_on_the_disk(models, adapter, dtype):
    """Of a checkpoint, of weights that an early stop may go back to, and of what is published."""
    from pipeline.models import loading as opened
    from pipeline.training import build
    from pipeline.training.monitoring import guards

    init = models["tied"]
    cfg = settled(adapter, dtype=dtype, save_every=1, eval_every=1, guards={"stop_on": "loss"})
    out = init.path.parent.parent / "train" / f"{cfg.adapter.kind} {dtype}"
    rows = rows_for(cfg, LONGEST)
    rows["dev"] = rows["train"].head(2)
    policy = build.load_policy(cfg, init)
    settings = opened.copy_settings(policy)
    watch = guards.build_guards(cfg, init, init, None, rows["dev"], out)
    build.build_trainer(cfg, policy, init, Model(init.path.parent), rows, out, watch)[0].train()
    if adapter is FULL:
        opened.save_full(policy, settings, init, dtype, out)
    else:
        opened.save_merged(
            opened.save_adapter(policy, init, cfg.adapter, dtype, out), dtype, out / "merged"
        )
    shape = read_shape(Path(init.weights))
    assert shape
    space = model_shape.estimate_disk(shape, cfg)
    [checkpoint], kept = (
        (out / "scratch" / "checkpoints").glob("*-1"),
        [*(out / "scratch" / "kept").iterdir()],
    )
    assert space.checkpoint == pytest.approx(size(checkpoint), rel=0.05)
    assert len(kept) <= 2 and space.best_weights == pytest.approx(kept[0].stat().st_size, rel=0.02)
    assert space.published == pytest.approx(
        sum(size(part) for part in out.iterdir() if part.name != "scratch"), rel=0.05
    )


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
