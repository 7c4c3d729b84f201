"""GRPO and its relatives by TRL's GRPOTrainer: rewards compared within the answers to a prompt."""

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from pipeline.config import OnlineTraining
from pipeline.training.trainers.online import OnlineTrainer, sampling_arguments


@dataclass
class Arguments(GRPOConfig):
    kl_beta: float = 0.0  # TRL's `beta` stays 0, so that TRL loads no reference


class Trainer(OnlineTrainer, GRPOTrainer):  # the name that training/build.py asks for
    pass


def loss_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    return {**sampling_arguments(cfg), "loss_type": cfg.loss[0]}
