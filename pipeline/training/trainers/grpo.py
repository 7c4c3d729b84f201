"""GRPO and its relatives by TRL's GRPOTrainer: rewards compared within the answers to a prompt."""

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from pipeline.config import OnlineTraining
from pipeline.training.trainers.online import OnlineTrainer, sampling_arguments


class OnlineGRPOTrainer(OnlineTrainer, GRPOTrainer):
    pass


# The names that training/build.py asks for.
Arguments, Trainer = GRPOConfig, OnlineGRPOTrainer


def loss_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    return {**sampling_arguments(cfg), "loss_type": cfg.loss[0]}
