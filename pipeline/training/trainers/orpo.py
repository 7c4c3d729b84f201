"""ORPO by TRL's ORPOTrainer, its columns made of token ids instead of text."""

from typing import Any

from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import PretokenizedTrainer
from pipeline.training.trainers.cpo import build_columns

Arguments = ORPOConfig


class PretokenizedORPOTrainer(PretokenizedTrainer, ORPOTrainer):
    """Takes the columns `prompt_ids, chosen_ids, rejected_ids`."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return build_columns(feature)

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        return batch["chosen_input_ids"].shape[0]


Trainer = PretokenizedORPOTrainer  # the name that training/build.py asks for


def loss_arguments(cfg: TrainConfig) -> dict[str, Any]:
    return {"remove_unused_columns": False}
