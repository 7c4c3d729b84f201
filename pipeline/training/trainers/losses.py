"""Losses of pairs that TRL does not have, or does not have as published.

Each is a function of a batch's pairs and gives one value per pair. docs/objectives.md has the
formulas and their sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairBatch:
    """Log-probabilities in nats, summed over each answer. `columns` are the pairs' own."""

    args: Any  # of the trainer: beta, label_smoothing, and what single losses read
    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_length: Tensor  # in tokens
    rejected_length: Tensor
    columns: Mapping[str, Tensor]
    whole_nll: Tensor | None  # per token of prompts and chosen answers together

    @property
    def up(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def down(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def mean_chosen(self) -> Tensor:
        return self.chosen / self.chosen_length

    @property
    def mean_rejected(self) -> Tensor:
        return self.rejected / self.rejected_length


def soft_sigmoid(pairs: PairBatch) -> Tensor:
    """DPO where chosen is better with a probability: cross-entropy to it."""
    margin, p = pairs.args.beta * (pairs.up - pairs.down), pairs.columns["p_chosen"]
    return -p * logsigmoid(margin) - (1 - p) * logsigmoid(-margin)


def soft_ipo(pairs: PairBatch) -> Tensor:
    """IPO's mean over a label drawn by the probability, less a constant of the pair."""
    gap = pairs.up / pairs.chosen_length - pairs.down / pairs.rejected_length
    return (gap - (2 * pairs.columns["p_chosen"] - 1) / (2 * pairs.args.beta)) ** 2


def sppo(pairs: PairBatch) -> Tensor:
    """Each log-ratio goes to the probability of winning over a half, times 1/β."""
    target = (pairs.columns["p_chosen"] - 0.5) / pairs.args.beta
    return (pairs.up - target) ** 2 + (pairs.down + target) ** 2


def reward_aware(pairs: PairBatch) -> Tensor:
    """KL from the preference that the scores' margin tells to the policy's."""
    own = pairs.args.beta * (pairs.up - pairs.down)
    told = pairs.args.reward_scale * pairs.columns["margin"]
    kl = told.sigmoid() * (logsigmoid(told) - logsigmoid(own))
    return kl + (-told).sigmoid() * (logsigmoid(-told) - logsigmoid(-own))


def simpo(pairs: PairBatch) -> Tensor:
    args = pairs.args
    chosen, rejected = (
        _shape_reward(mean, args.alpha) for mean in (pairs.mean_chosen, pairs.mean_rejected)
    )
    margin = args.beta * (chosen - rejected) - args.simpo_gamma
    right, wrong = logsigmoid(margin), logsigmoid(-margin)
    return -(1 - args.label_smoothing) * right - args.label_smoothing * wrong


def _shape_reward(mean: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward of a mean log-probability; with 0 it is that itself."""
    return (1 - torch.exp(-alpha * mean)) / alpha if alpha else mean


def orpo(pairs: PairBatch) -> Tensor:
    assert pairs.whole_nll is not None, "the trainer computes the prompt's log-probabilities too"
    odds = _log_odds(pairs.mean_chosen) - _log_odds(pairs.mean_rejected)
    return pairs.whole_nll - pairs.args.beta * logsigmoid(odds)


def _log_odds(mean: Tensor) -> Tensor:
    """log p/(1−p) of p = exp(mean)."""
    return mean - torch.log(-torch.expm1(mean))


LOSSES: Mapping[str, Callable[[PairBatch], Tensor]] = {
    each.__name__: each for each in (soft_sigmoid, soft_ipo, sppo, reward_aware, simpo, orpo)
}
