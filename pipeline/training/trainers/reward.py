"""A reward model by TRL's RewardTrainer on ready ids: from pairs by its own loss, from thumbs by binary labels."""

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
from pipeline.scorers.pooling import forward
from pipeline.scorers.reward_text import Row as Text
from pipeline.training.monitoring.callbacks import (
    CheckpointLedger,
    FiniteGuard,
    MetricsLog,
    ProgressLine,
)
from pipeline.training.monitoring.trackers import Tracked
from pipeline.training.trainers.arguments import arguments
from pipeline.training.trainers.learning_rate import ClimbingFromTheFirstStep

Ids = list[int]
Example = dict[str, Any]  # good_ids, bad_ids (None: there is no such side), flipped


class ReadyRewardTrainer(ClimbingFromTheFirstStep, RewardTrainer):
    """Takes `chosen_ids, rejected_ids` as they are."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one with paths and dates into every checkpoint."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._mean_rows = sum(len(batch["input_ids"]) for batch in batches) / max(len(batches), 1)
        return batches, items

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Every row of an optimizer step weighs the same, however `micro_batch` splits the step."""
        weight = len(inputs["input_ids"]) / self._mean_rows
        return weight * self.loss_of(model, inputs)

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> Any:
        return super().compute_loss(model, inputs)


class UnpairedRewardTrainer(ReadyRewardTrainer):
    """Takes `ids, label`: the score is the log-odds that an answer is good."""

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["ids", "label"]

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> Any:
        labels = inputs.pop("labels")
        scores = model(**inputs, use_cache=False).logits.squeeze(-1)
        right = ((scores > 0) == (labels > 0)).float().mean()
        self._metrics["train"]["accuracy"].append(
            self.accelerator.gather_for_metrics(right).mean().item()
        )
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)


def load(start: Model, seed: int) -> Any:
    """The model in float32 with a new head for one number; all else has to be there."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the head is new is what we want
    set_seed(seed)
    return load_strict(
        AutoModelForSequenceClassification, start, "float32", new_head=True, num_labels=1
    )


def set_pad_token(tokenizer: Any, examples: Sequence[Example]) -> None:
    """One that ends no text: transformers reads the score at the last token that is no pad token."""
    ends = {ids[-1] for example in examples for ids in _texts(example)}
    for token in (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in ends:
            tokenizer.pad_token = token
            return
    raise UserError(
        f"{tokenizer.name_or_path}: its tokenizer has no pad token that is not also a text's last token, where a "
        f"reward is read.\n  Set pad_token in tokenizer_config.json to a token that stands in no text."
    )


def trainer_for(
    cfg: RewardTraining, module: Any, tokenizer: Any, examples: list[Example], out: Path
) -> tuple[ReadyRewardTrainer, CheckpointLedger]:
    scratch = out / "scratch"
    ledger = CheckpointLedger(scratch / "checkpoints")
    shared: dict[str, Any] = {
        "model": module,
        "args": RewardArguments(**arguments(cfg, scratch / "checkpoints"), max_length=None),
        "processing_class": tokenizer,
        "callbacks": [
            FiniteGuard(),
            MetricsLog(out / "metrics.jsonl"),
            ledger,
            ProgressLine("reward"),
            Tracked(cfg.runtime.tracker, out),
        ],
    }
    trainer = _by_kind(cfg, shared, tokenizer.pad_token_id, examples)
    trainer.remove_callback(PrinterCallback)
    if trainer.args.world_size != 1 or trainer.args.n_gpu > 1:
        raise UserError(
            "reward runs in one process on one device, and a launcher started more: start it without."
        )
    return trainer, ledger


def _by_kind(
    cfg: RewardTraining, shared: dict[str, Any], pad: int, examples: list[Example]
) -> ReadyRewardTrainer:
    if cfg.learn_from == "pairs":
        sides = {"chosen_ids": "good_ids", "rejected_ids": "bad_ids"}
        data = Dataset.from_dict(
            {theirs: [e[ours] for e in examples] for theirs, ours in sides.items()}
        )
        return ReadyRewardTrainer(train_dataset=data, **shared)
    labels = [float(example["good_ids"] is not None) for example in examples]
    data = Dataset.from_dict({"ids": [ids for e in examples for ids in _texts(e)], "label": labels})
    return UnpairedRewardTrainer(
        train_dataset=data, data_collator=lambda rows: _thumbs(rows, pad), **shared
    )


def _thumbs(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(row["ids"]) for row in rows)
    lengths = torch.tensor([len(row["ids"]) for row in rows])
    return {
        "input_ids": torch.tensor([row["ids"] + [pad] * (width - len(row["ids"])) for row in rows]),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def accuracy(module: Any, pad: int, examples: list[Example], batch_tokens: int) -> dict[str, float]:
    """How often it agrees with the held-out labels; on rows none of whose answers it learned from, apart; and with the
    right labels, where it is known which are wrong.
    """
    rows = [Text(ids) for example in examples for ids in _texts(example)]
    scores = iter([value for [value] in forward(module.eval(), pad, rows, batch_tokens)])
    right = [_right(example, scores) for example in examples]
    if not all(map(math.isfinite, right)):
        raise StageError(
            "reward: the trained model gives scores that are no numbers: nothing is published."
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


def _right(example: Example, scores: Any) -> float:
    """A pair: is the better one ahead, ties counting half. A thumb: is the score on its side of zero."""
    good = next(scores) if example["good_ids"] is not None else 0.0
    bad = next(scores) if example["bad_ids"] is not None else 0.0
    gap = good - bad
    return gap if math.isnan(gap) else 0.5 + 0.5 * ((gap > 0) - (gap < 0))


def _texts(example: Example) -> list[Ids]:
    return [example[side] for side in ("good_ids", "bad_ids") if example[side] is not None]
