"""A finished run made from nothing in seconds: a tiny SFT model, an adapter on it, and the tables
of one round.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from pipeline import store
from pipeline.artifacts import Model, Pairs, write_json, write_table, write_text
from pipeline.config import TrainConfig
from pipeline.models import loading
from tests.support.house import SMALL, composed
from tests.support.preferences import LORA, dpo, write_pairs
from tests.support.tiny import tiny_model

SFT, TRAIN, REPORT = "sft/aaaaaaaaaaaa", "train/dddddddddddd", "evaluate/eeeeeeeeeeee"
SAMPLE, SCORE, PAIR = "sample/bbbbbbbbbbbb", "score/cccccccccccc", "pair/ffffffffffff"
START = {"kind": "checkpoint", "model": "my-org/start", "revision": None}
PROMPTS = {"kind": "jsonl", "path": "/home/me/secret/prompts.jsonl"}
# Greedy answers of at most 12 tokens.
CHOICES = ["dtype=float32", "limits.completion=12", "evaluate.sample.settings.answer.temperature=0"]


def make_run(folder: Path) -> Path:
    """A run in `folder`/runs/mine/now, with its store in `folder`/store."""
    root = folder / "store"
    sft = tiny_model(root / SFT, hidden=128)  # vLLM computes no attention of smaller heads
    seal(root / "prompts/999999999999", PROMPTS)
    seal(root / SFT, START)
    seal(root / TRAIN, make_adapter(root / TRAIN, sft).model_dump(mode="json"), SFT, PAIR)
    write_round(root, sft)
    write_report(root / REPORT)
    run = folder / "runs" / "mine" / "now"
    links = {"sft": SFT, "sample-1": SAMPLE, "score-1": SCORE, "pair-1": PAIR, "train-1": TRAIN}
    (run / "store").mkdir(parents=True)
    for number, (name, step) in enumerate({**links, "evaluate-report": REPORT}.items()):
        (run / "store" / f"{number:03}-{name}").symlink_to(root / step)
    config = composed(*SMALL, *CHOICES).model_dump(mode="json")
    write_text(run / "config.yaml", yaml.safe_dump(config))
    return run


def make_adapter(out: Path, sft: Model) -> TrainConfig:
    """An untrained adapter whose weights are large enough to change what is said."""
    import torch

    cfg = dpo({**LORA, "learning_rate": 2e-2})
    torch.manual_seed(1)
    module = loading.load_with_adapter(sft, cfg.adapter, "float32")
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    loading.save_adapter(module, sft, cfg.adapter, "float32", out)
    write_text(out / "README.md", "---\nlibrary_name: peft\ntags:\n- dpo\n---\n\n# A training\n")
    write_text(out / "metrics.jsonl", '{"step": 1}\n')
    return cfg


def write_round(root: Path, sft: Model) -> None:
    pairs: Pairs = write_pairs(root / PAIR, sft, train=3, dev=1)
    rows = pairs.read_train()
    sides = [
        rows.select(
            "prompt_id",
            pl.col(f"{side}_id").alias("sample_id"),
            pl.lit(1).alias("round"),
            pl.lit("draw").alias("setting"),
            pl.lit(1.0).alias("temperature"),
            "prompt",
            pl.col(side).list.first().struct.field("content").alias("completion"),
            pl.lit("stop").alias("finish_reason"),
            pl.col(f"{side}_token_ids").alias("token_ids"),
        )
        for side in ("chosen", "rejected")
    ]
    samples = pl.concat(sides)
    write_table(root / SAMPLE / "samples" / "0.parquet", samples)
    score = {"scorer": "rules", "score": 0.5, "status": "ok", "detail": ""}
    ids = samples.select("sample_id", "prompt_id")
    columns = [pl.lit(value).alias(name) for name, value in score.items()]
    write_table(root / SCORE / "scores" / "0.parquet", ids.with_columns(columns))
    for step in (SAMPLE, SCORE, PAIR):
        seal(root / step, {})


def write_report(step: Path) -> None:
    names = {"sft": SFT, "control": SFT, "round-1": TRAIN}
    inputs = {f"evals.{name}.model": _name_step(step) for name, step in names.items()}
    verdict = {"better": "yes", "why": "On 40 test prompts round-1 scores more."}
    write_json(step / "report.json", {"evaluation": {"chosen": "round-1"}, "verdict": verdict})
    write_json(step / "step.json", {"config": {}, "inputs": inputs})
    seal(step, {})


def _name_step(step: str) -> dict[str, str]:
    stage, _, fingerprint = step.partition("/")
    return {"stage": stage, "fingerprint": fingerprint}


def seal(step: Path, config: dict[str, Any], *ancestors: str) -> None:
    """With a record and a manifest, as the worker leaves it."""
    step.mkdir(parents=True, exist_ok=True)
    names = ["prompts/999999999999", *ancestors]
    record = {"config": config, "inputs": {}, "ancestors": [_name_step(one) for one in names]}
    if not (step / "step.json").exists():
        write_json(step / "step.json", record)
    known = {"stage": step.parent.name, "fingerprint": step.name, "inputs": {}, "config": config}
    files = store.list_files(step)
    store.seal(step, {**known, "files": files, "cost": {}, "seconds": 1.0})


def prune_step(step: Path) -> None:
    """As a prune leaves it, without asking about files that the tests added."""
    manifest = json.loads((step / store.MANIFEST).read_text())
    write_json(step / store.MANIFEST, {**manifest, "pruned": True})


def reseal(step: Path) -> None:
    """After a test has changed its files."""
    manifest = json.loads((step / store.MANIFEST).read_text())
    store.seal(step, {**manifest, "files": store.list_files(step)})
