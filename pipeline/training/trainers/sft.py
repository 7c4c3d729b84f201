"""Supervised fine-tuning by TRL's SFTTrainer on token ids; the loss sees the answer alone."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from pipeline.backends.chat import ModelTokenizer
from pipeline.config import Optimization
from pipeline.data.tool_turns import split_answer, to_answer
from pipeline.errors import UserError
from pipeline.training.monitoring.callbacks import (
    CheckpointLedger,
    FiniteGuard,
    MetricsLog,
    ProgressLine,
)
from pipeline.training.monitoring.trackers import TrackerCallback
from pipeline.training.trainers.arguments import common_arguments
from pipeline.training.trainers.learning_rate import NonzeroWarmup

Message = dict[str, str]
Example = dict[str, list[int]]
IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


def encode(tokenizer: ModelTokenizer, messages: list[Message], kwargs: dict[str, Any]) -> Example:
    """The prompt as a sampler sends it, and the last turn up to and with its stop token."""
    prompt, answer = split_answer(messages)
    return {
        "prompt_ids": tokenizer.encode(prompt, kwargs),
        "completion_ids": tokenizer.encode_answer(prompt, to_answer(answer), kwargs),
    }


class PretokenizedSFTTrainer(NonzeroWarmup, SFTTrainer):
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card with paths and dates into every checkpoint."""


def build_trainer(
    cfg: Optimization, model: Any, tokenizer: Any, examples: list[Example], out: Path
) -> tuple[PretokenizedSFTTrainer, CheckpointLedger]:
    scratch = out / "scratch"
    ledger = CheckpointLedger(scratch / "checkpoints")
    trainer = PretokenizedSFTTrainer(
        model=model,
        args=SFTConfig(**_make_arguments(cfg, scratch / "checkpoints")),
        train_dataset=_make_dataset(examples),
        processing_class=tokenizer,
        callbacks=[
            FiniteGuard(),
            MetricsLog(out / "metrics.jsonl"),
            ledger,
            ProgressLine("sft"),
            TrackerCallback(cfg.runtime.tracker, out),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.args.world_size != 1 or trainer.args.n_gpu > 1:
        raise UserError(
            "sft runs in one process on one device, and a launcher started several: start it "
            "without a launcher."
        )
    return trainer, ledger


def _make_dataset(examples: list[Example]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [e["prompt_ids"] + e["completion_ids"] for e in examples],
            "labels": [[IGNORED] * len(e["prompt_ids"]) + e["completion_ids"] for e in examples],
        }
    )


def _make_arguments(cfg: Optimization, checkpoints: Path) -> dict[str, Any]:
    return {
        **common_arguments(cfg, checkpoints),
        "max_length": None,  # cut nothing: examples that are too long were dropped and counted
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
