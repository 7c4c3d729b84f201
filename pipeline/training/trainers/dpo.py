"""DPO and its family by TRL's DPOTrainer: TRL's losses on token ids, without TRL's tokenising."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trl import DPOConfig, DPOTrainer

from pipeline.config import TrainConfig
from pipeline.training.trainers.base import PretokenizedTrainer

if TYPE_CHECKING:
    from datasets import Dataset

Arguments = DPOConfig


class PretokenizedDPOTrainer(PretokenizedTrainer, DPOTrainer):
    """Takes the columns `prompt_ids, chosen_ids, rejected_ids`.

    Precomputed reference values come as `ref_chosen_logps, ref_rejected_logps`.
    """

    def _prepare_dataset(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    def _precompute_ref_logps(self, dataset: "Dataset", *args: Any) -> "Dataset":
        return dataset

    @staticmethod
    def count_rows(batch: dict[str, Any]) -> int:
        return batch["input_ids"].shape[0] // 2


Trainer = PretokenizedDPOTrainer  # the name that training/build.py asks for


def loss_arguments(cfg: TrainConfig) -> dict[str, Any]:
    terms = list(_list_terms(cfg))
    return {
        "loss_type": [name for name, _ in terms],
        "loss_weights": [weight for _, weight in terms],
        "precompute_ref_log_probs": cfg.reference_logps == "precomputed",
    }


def _list_terms(cfg: TrainConfig) -> Iterator[tuple[str, float]]:
    """The losses with their weights, under TRL's names.

    TRL's sigmoid loss has lost its label smoothing, so cDPO is composed of two losses.
    With s = −log σ(βΔ) and f = −log σ(−βΔ):
        cDPO         = (1−ε)s + εf
        TRL's robust = ((1−ε)s − εf) / (1−2ε)
    so cDPO = 2(1−ε) · sigmoid − (1−2ε) · robust, exactly.
    """
    for name, weight in zip(cfg.loss, cfg.loss_weights or [1.0] * len(cfg.loss), strict=True):
        if name == "cdpo":
            epsilon = cfg.args.get("label_smoothing", 0.0)
            assert isinstance(epsilon, float | int)
            yield "sigmoid", weight * 2 * (1 - epsilon)
            yield "robust", -weight * (1 - 2 * epsilon)
        else:
            yield name, weight
