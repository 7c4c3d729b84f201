"""Pairs as the stage `pair` writes them: text, and the ids that the tiny tokenizer's own template
makes of it."""

import random
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Logps, Model, Pairs, write_table
from pipeline.config import ReferenceConfig, TrainConfig
from pipeline.stages import reference
from tests.support.tiny import WORDS


def text(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choices(WORDS.split(), k=draw.randint(low, high)))


def pair_rows(model: Model, count: int, seed: int, ids: str) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer)
    draw, rows = random.Random(seed), []
    for number in range(count):
        prompt = [{"role": "user", "content": text(draw, 2, 12)}]
        templated = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        row = {"prompt_id": f"{ids}{number}", "prompt": prompt}
        row["prompt_token_ids"] = tokenizer(templated, add_special_tokens=False)["input_ids"]
        for side, (low, high) in {"chosen": (1, 9), "rejected": (4, 16)}.items():
            answer = text(draw, low, high)
            row[side] = [{"role": "assistant", "content": answer}]
            row[f"{side}_id"] = f"{ids}{number}-{side}"
            row[f"{side}_token_ids"] = tokenizer(answer + "<|end|>", add_special_tokens=False)[
                "input_ids"
            ]
        step = number % 5  # what scores and judges tell of the pair
        row |= {"margin": 0.25 + 0.5 * step, "p_chosen": 0.5 + 0.1 * step, "weight": 0.5 + step}
        rows.append(row)
    return rows


def write_pairs(
    folder: Path, model: Model, train: int = 24, dev: int = 4, seed: int = 0, ids: str = "p"
) -> Pairs:
    rows = pair_rows(model, train + dev, seed, ids)
    write_table(folder / "train.parquet", pl.DataFrame(rows[:train]))
    write_table(
        folder / "dev.parquet", pl.DataFrame(rows[train:], schema=pl.DataFrame(rows).schema)
    )
    return Pairs(folder)


def write_logps(folder: Path, model: Model, pairs: Pairs, dtype: str = "float32") -> Logps:
    cfg = ReferenceConfig(
        dtype=dtype, quantization=None, runtime={"batch_tokens": 512, "workers": 1}
    )
    return reference.run(cfg, folder, model=model, rows=pairs)


FULL = {"kind": "full", "learning_rate": 1e-3}
LORA = {
    "kind": "lora",
    "learning_rate": 1e-3,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "targets": "all-linear",
    "rank_stabilized": False,
    "dora": False,
    "quantization": None,
    "save_merged": False,
}
QLORA = {**LORA, "kind": "qlora", "quantization": {"bits": 4, "double": True}}


GUARDS = {
    "prompts": 4,
    "tokens": 8,
    "template_kwargs": {},
    "warn_kl": 5.0,
    "kl_budget": None,
    "warn_chosen_logp_drop": 0.5,
    "max_chosen_logp_drop": None,
    "stop_on": None,
    "patience": 3,
    "scorer": None,
}


def dpo(
    adapter: dict[str, Any] = FULL,
    micro_batch: int | str = 2,
    save_every: int = 2,
    guards: dict[str, Any] | None = None,
    processes: int | str = 1,
    launch: str = "torchrun",
    typical_learning_rate: float | None = None,
    by_length: bool = True,
    shared_prompt: str | bool = "auto",
    eval_when_distributed: bool = False,
    runtime: dict[str, Any] | None = None,
    tracker: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainConfig:
    """24 pairs, 4 a step: six steps."""
    where: dict[str, Any] = {
        "micro_batch": micro_batch,
        "save_every": save_every,
        "processes": processes,
        "launch": launch,
        "tracker": tracker,
        "by_length": by_length,
        "shared_prompt": shared_prompt,
        "eval_when_distributed": eval_when_distributed,
        "machines": 1,
        "address": None,
        "port": None,
        "memory": 0.9,
        "gpu_hour": None,
        "keep_checkpoints": False,
        "warn_sampler_gap": 0.02,
        "typical_beta": changes.get("beta", 0.1),  # whatever the loss
        **(runtime or {}),
    }
    where["typical_learning_rate"] = typical_learning_rate or changes.get(
        "learning_rate", adapter["learning_rate"]
    )
    knobs = {
        "trainer": "dpo",
        "loss": ["sigmoid"],
        "loss_weights": None,
        "weight": {"column": None, "scale": 1.0},
        "mask": {"format_tokens": False},
        "beta": 0.1,
        "reference_logps": "precomputed",
        "loss_group": None,
        "adapter": adapter,
        "learning_rate": adapter["learning_rate"],
        "epochs": 1,
        "batch": 4,
        "scheduler": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "max_length": 128,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "attention": "auto",
        "eval_every": 4,
        "guards": {**GUARDS, **(guards or {})},
        "rehearsal": None,
        "seed": 0,
        "args": {},
        "runtime": where,
    }
    return TrainConfig(**{**knobs, **changes})
