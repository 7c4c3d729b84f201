"""RLOO by TRL's RLOOTrainer: an answer's reward less the mean reward of the prompt's others."""

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from pipeline.config import OnlineTraining
from pipeline.training.trainers.online import OnlineTrainer, sampling_arguments


class OnlineRLOOTrainer(OnlineTrainer, RLOOTrainer):
    pass


# The names that training/build.py asks for.
Arguments, Trainer = RLOOConfig, OnlineRLOOTrainer


def loss_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    return sampling_arguments(cfg)
