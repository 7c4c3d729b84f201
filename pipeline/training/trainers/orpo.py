"""ORPO by TRL's ORPOTrainer, which tokenises text itself: here its columns are made of the ready ids."""

from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import ReadyTrainer
from pipeline.training.trainers.cpo import sides

Arguments = ORPOConfig


class Trainer(ReadyTrainer, ORPOTrainer):
    """Takes `prompt_ids, chosen_ids, rejected_ids` as they are."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return sides(feature)

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        return batch["chosen_input_ids"].shape[0]


def settings(cfg: TrainConfig) -> dict[str, Any]:
    return {"remove_unused_columns": False}
