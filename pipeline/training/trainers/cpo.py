"""CPO and SimPO by TRL's CPOTrainer, which tokenises text itself: here its columns are made of the ready ids."""

from typing import Any

from trl.experimental.cpo import CPOConfig, CPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import ReadyTrainer

Arguments = CPOConfig
IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


class Trainer(ReadyTrainer, CPOTrainer):
    """Takes `prompt_ids, chosen_ids, rejected_ids` as they are."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return sides(feature)

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        return batch["chosen_input_ids"].shape[0]


def sides(row: dict[str, Any]) -> dict[str, Any]:
    """One row in the columns of TRL's older collator; the loss sees the answer alone."""
    made = {}
    for side in ("chosen", "rejected"):
        prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
        made[f"{side}_input_ids"] = prompt + answer
        made[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
        made[f"{side}_labels"] = [IGNORED] * len(prompt) + answer
    return made


def settings(cfg: TrainConfig) -> dict[str, Any]:
    return {"loss_type": cfg.loss[0], "remove_unused_columns": False}
