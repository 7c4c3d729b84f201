"""CPO and SimPO by TRL's CPOTrainer, its columns made of token ids instead of text."""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import PretokenizedTrainer

Arguments = CPOConfig
IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


class PretokenizedCPOTrainer(PretokenizedTrainer, CPOTrainer):
    """Takes the columns `prompt_ids, chosen_ids, rejected_ids`."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return build_columns(feature)

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        return batch["chosen_input_ids"].shape[0]


Trainer = PretokenizedCPOTrainer  # the name that training/build.py asks for


def build_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of TRL's older collator for one row. The loss sees the answer's tokens only."""
    columns = {}
    for side in ("chosen", "rejected"):
        prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
        columns[f"{side}_input_ids"] = prompt + answer
        columns[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
        columns[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
    return columns


def loss_arguments(cfg: TrainConfig) -> dict[str, Any]:
    return {"loss_type": cfg.loss[0], "remove_unused_columns": False}
