"""GRPO and its relatives by TRL's GRPOTrainer: rewards compared within the answers to a prompt."""

from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig, GRPOTrainer

from pipeline.config import OnlineTraining
from pipeline.training.trainers.online import OnlineTrainer, sampling_arguments


@dataclass
class GrpoArguments(GRPOConfig):
    kl_beta: float = 0.0  # TRL's `beta` stays 0, so that TRL loads no reference


class OnlineGRPOTrainer(OnlineTrainer, GRPOTrainer):
    pass


# The names that training/build.py asks for.
Arguments, Trainer = GrpoArguments, OnlineGRPOTrainer


def loss_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    return {**sampling_arguments(cfg), "loss_type": cfg.loss[0]}
