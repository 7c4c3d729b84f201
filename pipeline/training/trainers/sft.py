"""Supervised fine-tuning by TRL's SFTTrainer on token ids; the loss sees the answer and its EOS."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from pipeline.backends.chat import apply_template, encode_continuation
from pipeline.config import Optimization
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


def encode(tokenizer: Any, messages: list[Message], kwargs: dict[str, Any]) -> Example:
    """The prompt as a sampler sends it, and the tokens of the last turn up to and with its EOS."""
    where = str(tokenizer.name_or_path)
    shown = apply_template(
        tokenizer, where, messages[:-1], tokenize=False, add_generation_prompt=True, **kwargs
    )
    whole = apply_template(tokenizer, where, messages, tokenize=False, **kwargs)
    if not whole.startswith(shown):
        differing = (i for i, (a, b) in enumerate(zip(shown, whole, strict=False)) if a != b)
        at = next(differing, min(len(shown), len(whole)))
        raise UserError(
            f"the chat template renders a prompt differently alone and followed by its answer: "
            f"{shown[at:][:40]!r} became {whole[at:][:40]!r}.\n"
            f"  Give a template.chat_template=FILE (or template.kwargs) that keeps the prompt."
        )
    prompt = tokenizer(shown, add_special_tokens=False)["input_ids"]
    completion = encode_continuation(tokenizer, shown, whole)
    if tokenizer.eos_token_id not in completion:
        raise UserError(
            f"the chat template does not close an answer with the tokenizer's EOS "
            f"({tokenizer.eos_token}): it ends with {whole[-20:]!r}, and the model would never "
            f"learn to stop.\n"
            f"  Set eos_token in tokenizer_config.json to what ends a turn, or give a "
            f"template.chat_template=FILE."
        )
    last = len(completion) - completion[::-1].index(tokenizer.eos_token_id)
    return {"prompt_ids": prompt, "completion_ids": completion[:last]}


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
