"""KTO by TRL's KTOTrainer on unpaired answers as token ids, with mismatched answers for its KL."""

import hashlib
from typing import TYPE_CHECKING, Any

from trl import KTOConfig, KTOTrainer

from pipeline.artifacts import draw_key
from pipeline.config import TrainConfig
from pipeline.training.trainers.base import PretokenizedTrainer

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset

Arguments = KTOConfig


class PretokenizedKTOTrainer(PretokenizedTrainer, KTOTrainer):
    """Takes the columns `prompt_ids, completion_ids, KL_completion_ids, label`."""

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        return batch["label"].shape[0]

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL averages the processes' means. The weight here makes that the mean of their rows."""
        logps = super()._compute_kl_logps(model, batch)
        if self.part is None or logps is None:
            return logps
        world = self.args.world_size
        # accelerate cuts what it gathers for an evaluation's last batch to that batch's rows.
        counted = world if self.model.training else min(world, self.part.total)
        return logps * (self.part.rows * counted / self.part.total)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Rename TRL's `kl`, measured on mismatched answers: the guards log the policy's own KL."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        if "kl" in metrics:
            metrics["kto_kl"] = metrics.pop("kl")
        super().log(logs, *args, **kwargs)


Trainer = PretokenizedKTOTrainer  # the name that training/build.py asks for


def loss_arguments(cfg: TrainConfig) -> dict[str, Any]:
    return {"loss_type": cfg.loss[0], "beta": cfg.beta, "max_length": cfg.max_length}


def order_for_training(
    unpaired: "pl.DataFrame", loss_group: int | None, seed: int
) -> "pl.DataFrame":
    """Shuffle the rows by hash and give each its KL answer: the one before it in its micro-batch.

    TRL trains on the rows in the order given. Unshuffled, answers to one prompt would be
    neighbours, and each would be the other's mismatched answer.
    """
    import polars as pl

    keys = [
        hashlib.sha256(f"{seed}:{draw_key(name)}:{label}".encode()).hexdigest() + name
        for name, label in unpaired.select("sample_id", "label").rows()
    ]
    order = pl.Series("order", keys, dtype=pl.String)
    table = unpaired.with_columns(order).sort("order").drop("order", "sample_id")
    if loss_group is None:
        return table
    answers = table["completion_ids"].to_list()
    mismatched: list[Any] = []
    for start in range(0, len(answers), loss_group):
        mismatched += _rotate(answers[start : start + loss_group])
    dtype = table.schema["completion_ids"]
    return table.with_columns(pl.Series("KL_completion_ids", mismatched, dtype=dtype))


def _rotate(answers: list[Any]) -> list[Any]:
    return [answers[-1], *answers[:-1]]
