"""KTO by TRL on thumbs whose token ids are ready, each with a neighbour's answer for the KL estimate."""

import hashlib
from typing import TYPE_CHECKING, Any

from trl import KTOConfig, KTOTrainer

from pipeline.artifacts import draw_key
from pipeline.config import TrainConfig
from pipeline.training.trainers.base import ReadyTrainer

if TYPE_CHECKING:
    import polars as pl
    from datasets import Dataset

Arguments = KTOConfig


class Trainer(ReadyTrainer, KTOTrainer):
    """Takes `prompt_ids, completion_ids, KL_completion_ids, label` as they are."""

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        return batch["label"].shape[0]

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL takes the mean of the processes' means: weighed so that it is the mean of their rows."""
        logps = super()._compute_kl_logps(model, batch)
        if self.part is None or logps is None:
            return logps
        world = self.args.world_size
        counted = (
            world if self.model.training else min(world, self.part.of)
        )  # a look's last is cut to what has rows
        return logps * (self.part.rows * counted / self.part.of)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Its KL is of answers to other prompts; `kl` is what the guards call that of the policy's own."""
        seen = self._metrics["train" if self.model.training else "eval"]
        if "kl" in seen:
            seen["kto_kl"] = seen.pop("kl")
        super().log(logs, *args, **kwargs)


def settings(cfg: TrainConfig) -> dict[str, Any]:
    return {"loss_type": cfg.loss[0]}


def in_training_order(thumbs: "pl.DataFrame", together: int | None, seed: int) -> "pl.DataFrame":
    """TRL trains on thumbs in the order given, since a row's KL answer is the one before it in its micro-batch.

    The order is shuffled by hash: side by side, answers to one prompt would be each other's mismatch.
    """
    import polars as pl

    keys = [
        hashlib.sha256(f"{seed}:{draw_key(name)}:{label}".encode()).hexdigest() + name
        for name, label in thumbs.select("sample_id", "label").rows()
    ]
    table = (
        thumbs.with_columns(pl.Series("order", keys, dtype=pl.String))
        .sort("order")
        .drop("order", "sample_id")
    )
    if together is None:
        return table
    answers = table["completion_ids"].to_list()
    turned = [
        one
        for at in range(0, len(answers), together)
        for one in _turned(answers[at : at + together])
    ]
    return table.with_columns(
        pl.Series("KL_completion_ids", turned, dtype=table.schema["completion_ids"])
    )


def _turned(answers: list[Any]) -> list[Any]:
    return [answers[-1], *answers[:-1]]
