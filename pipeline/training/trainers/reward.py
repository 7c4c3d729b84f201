"""A reward model by TRL's RewardTrainer on token ids.

It learns from pairs by TRL's loss, and from unpaired answers by binary cross-entropy.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import RewardConfig as RewardArguments
from trl import RewardTrainer

from pipeline.artifacts import Model
from pipeline.config import RewardTraining
from pipeline.errors import StageError, UserError
from pipeline.models.strict_loading import load_strict
from pipeline.scorers.classifier_logits import forward_in_batches
from pipeline.scorers.reward_text import EncodedRow as Text
from pipeline.training.monitoring.callbacks import (
    CheckpointLedger,
    FiniteGuard,
    MetricsLog,
    ProgressLine,
)
from pipeline.training.monitoring.trackers import TrackerCallback
from pipeline.training.trainers.arguments import common_arguments
from pipeline.training.trainers.learning_rate import NonzeroWarmup

Ids = list[int]
Example = dict[str, Any]  # good_ids, bad_ids (None where a side is missing), flipped, familiar


class PretokenizedRewardTrainer(NonzeroWarmup, RewardTrainer):
    """Takes the columns `chosen_ids, rejected_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_rows = sum(len(batch["input_ids"]) for batch in batches) / max(len(batches), 1)
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weigh every row of an optimizer step alike, however `micro_batch` splits the step."""
        weight = len(inputs["input_ids"]) / self._mean_rows
        return weight * self.compute_batch_loss(model, inputs)

    def compute_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super().compute_loss(model, inputs)


class UnpairedRewardTrainer(PretokenizedRewardTrainer):
    """Takes the columns `ids, label`. The score is the log-odds that an answer is good."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["ids", "label"]

    def compute_batch_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        labels = inputs.pop("labels")
        scores = model(**inputs, use_cache=False).logits.squeeze(-1)
        right = ((scores > 0) == (labels > 0)).float().mean()
        accuracy = self.accelerator.gather_for_metrics(right).mean().item()
        self._metrics["train"]["accuracy"].append(accuracy)
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)


def load(start: Model, seed: int) -> Any:
    """Load the model in float32 with a new head for one number; every other weight must exist."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # it would warn that the head is new
    set_seed(seed)
    return load_strict(
        AutoModelForSequenceClassification, start, "float32", new_head=True, num_labels=1
    )


def set_pad_token(tokenizer: Any, examples: Sequence[Example]) -> None:
    """Choose a pad token that ends no text.

    transformers reads the score at the last token that is not the pad token.
    """
    ends = {ids[-1] for example in examples for ids in _list_texts(example)}
    for token in (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in ends:
            tokenizer.pad_token = token
            return
    raise UserError(
        f"{tokenizer.name_or_path}: its tokenizer has no pad token that is not also a text's last "
        f"token, where the reward is read.\n"
        f"  Set pad_token in tokenizer_config.json to a token that occurs in no text."
    )


def build_trainer(
    cfg: RewardTraining, module: Any, tokenizer: Any, examples: list[Example], out: Path
) -> tuple[PretokenizedRewardTrainer, CheckpointLedger]:
    scratch = out / "scratch"
    ledger = CheckpointLedger(scratch / "checkpoints")
    shared: dict[str, Any] = {
        "model": module,
        "args": RewardArguments(**common_arguments(cfg, scratch / "checkpoints"), max_length=None),
        "processing_class": tokenizer,
        "callbacks": [
            FiniteGuard(),
            MetricsLog(out / "metrics.jsonl"),
            ledger,
            ProgressLine("reward"),
            TrackerCallback(cfg.runtime.tracker, out),
        ],
    }
    trainer = _make_trainer(cfg, shared, tokenizer.pad_token_id, examples)
    trainer.remove_callback(PrinterCallback)
    if trainer.args.world_size != 1 or trainer.args.n_gpu > 1:
        raise UserError(
            "reward runs in one process on one device, and a launcher started several: start it "
            "without a launcher."
        )
    return trainer, ledger


def _make_trainer(
    cfg: RewardTraining, shared: dict[str, Any], pad: int, examples: list[Example]
) -> PretokenizedRewardTrainer:
    if cfg.learn_from == "pairs":
        columns = {"chosen_ids": "good_ids", "rejected_ids": "bad_ids"}
        data = Dataset.from_dict(
            {name: [e[side] for e in examples] for name, side in columns.items()}
        )
        return PretokenizedRewardTrainer(train_dataset=data, **shared)
    labels = [float(example["good_ids"] is not None) for example in examples]
    data = Dataset.from_dict(
        {"ids": [ids for e in examples for ids in _list_texts(e)], "label": labels}
    )
    return UnpairedRewardTrainer(
        train_dataset=data, data_collator=lambda rows: _collate_unpaired(rows, pad), **shared
    )


def _collate_unpaired(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["ids"]) for row in rows)
    lengths = torch.tensor([len(row["ids"]) for row in rows])
    return {
        "input_ids": torch.tensor([row["ids"] + [pad] * (width - len(row["ids"])) for row in rows]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def measure_accuracy(
    module: Any, pad: int, examples: list[Example], batch_tokens: int
) -> dict[str, float]:
    """How often the model agrees with the held-out labels.

    `accuracy_new` counts the rows none of whose answers were trained on. `gold_accuracy` is
    agreement with the true labels, where the data records which labels are flipped.
    """
    rows = [Text(ids) for example in examples for ids in _list_texts(example)]
    scores = iter([value for [value] in forward_in_batches(module.eval(), pad, rows, batch_tokens)])
    right = [_score_example(example, scores) for example in examples]
    if not all(map(math.isfinite, right)):
        raise StageError(
            "reward: the trained model gives scores that are NaN or infinite: nothing is published."
        )
    figures: dict[str, float] = {"held_out": len(right), "accuracy": sum(right) / len(right)}
    new = [one for one, example in zip(right, examples, strict=True) if not example["familiar"]]
    if new:
        figures |= {"held_out_new": len(new), "accuracy_new": sum(new) / len(new)}
    if any(example["flipped"] is None for example in examples):
        return figures
    gold = [
        1 - one if example["flipped"] else one for one, example in zip(right, examples, strict=True)
    ]
    return {**figures, "gold_accuracy": sum(gold) / len(gold)}


def _score_example(example: Example, scores: Any) -> float:
    """1 where the good answer scores above the bad one, 0.5 at a tie. A missing side scores 0."""
    good = next(scores) if example["good_ids"] is not None else 0.0
    bad = next(scores) if example["bad_ids"] is not None else 0.0
    gap = good - bad
    return gap if math.isnan(gap) else 0.5 + 0.5 * ((gap > 0) - (gap < 0))


def _list_texts(example: Example) -> list[Ids]:
    return [example[side] for side in ("good_ids", "bad_ids") if example[side] is not None]
