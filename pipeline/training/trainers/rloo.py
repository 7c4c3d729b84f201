"""RLOO by TRL's RLOOTrainer: an answer's reward less the mean reward of the prompt's others."""

from dataclasses import dataclass
from typing import Any

from trl import RLOOConfig, RLOOTrainer

from pipeline.config import OnlineTraining
from pipeline.training.trainers.online import OnlineTrainer, sampling_arguments


@dataclass
class RlooArguments(RLOOConfig):
    kl_beta: float = 0.0  # TRL's `beta` stays 0, so that TRL loads no reference


class OnlineRLOOTrainer(OnlineTrainer, RLOOTrainer):
    pass


# The names that training/build.py asks for.
Arguments, Trainer = RlooArguments, OnlineRLOOTrainer


def loss_arguments(cfg: OnlineTraining) -> dict[str, Any]:
    return sampling_arguments(cfg)
