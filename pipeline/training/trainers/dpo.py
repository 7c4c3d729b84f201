"""DPO and its family by TRL on token ids that are ready: TRL's trainer and losses, and none of its tokenising."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trl import DPOConfig, DPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import ReadyTrainer

if TYPE_CHECKING:
    from datasets import Dataset

Arguments = DPOConfig


class Trainer(ReadyTrainer, DPOTrainer):
    """Takes `prompt_ids, chosen_ids, rejected_ids` (and `ref_chosen_logps, ref_rejected_logps`) as they are."""

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    @staticmethod
    def rows_in(batch: dict[str, Any]) -> int:
        return batch["input_ids"].shape[0] // 2


def settings(cfg: TrainConfig) -> dict[str, Any]:
    terms = list(_terms(cfg))
    return {
        "loss_type": [name for name, _ in terms],
        "loss_weights": [weight for _, weight in terms],
        "precompute_ref_log_probs": cfg.logps == "ready",
    }


def _terms(cfg: TrainConfig) -> Iterator[tuple[str, float]]:
    """The losses with their weights, in TRL's names.

    TRL's sigmoid loss has lost its label smoothing. With s = −log σ(βΔ), f = −log σ(−βΔ), cDPO is (1−ε)s + εf and
    TRL's robust loss is ((1−ε)s − εf) / (1−2ε): so cDPO is 2(1−ε) · sigmoid − (1−2ε) · robust, exactly.
    """
    for name, weight in zip(cfg.loss, cfg.loss_weights or [1.0] * len(cfg.loss), strict=True):
        if name == "cdpo":
            wrong = cfg.args.get("label_smoothing", 0.0)
            assert isinstance(wrong, float | int)
            yield "sigmoid", weight * 2 * (1 - wrong)
            yield "robust", -weight * (1 - 2 * wrong)
        else:
            yield name, weight
