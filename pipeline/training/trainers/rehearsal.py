"""Demonstrations beside the pairs of each optimizer step, against forgetting: their negative log-likelihood is added.

Which of them a step sees follows from the seed and the step's number alone, so that a resumed training sees the same.
"""

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config import TrainConfig

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, list[int]]  # prompt_ids, completion_ids
Slot = tuple[Row, float]


class Rehearsal:
    """`count` rows a step, each weighing the same however processes and micro-batches share them."""

    def __init__(self, rows: list[Row], count: int, weight: float, seed: int):
        self.rows, self.count, self.weight, self.seed = rows, count, weight, seed

    def of_step(self, step: int) -> list[Row]:
        """On from where the step before ended; each pass through the rows has another order."""
        turns = (
            divmod(number, len(self.rows))
            for number in range(step * self.count, (step + 1) * self.count)
        )
        return [self.rows[_order(self.seed, turn, len(self.rows))[place]] for turn, place in turns]

    def shares(self, step: int, parts: int) -> list[list[Slot]]:
        """The step's rows in equal parts; a row that only fills one up weighs nothing there."""
        rows, each = self.of_step(step), -(-self.count // parts)
        weights = [
            self.weight * parts / self.count if at < self.count else 0.0
            for at in range(parts * each)
        ]
        slots = [(rows[at % self.count], weight) for at, weight in enumerate(weights)]
        return [slots[part::parts] for part in range(parts)]


def loss_of(model: Any, slots: list[Slot], device: torch.device) -> torch.Tensor:
    """The weighted sum of each row's negative log-likelihood per token of its answer."""
    rows = [row["prompt_ids"] + row["completion_ids"] for row, _ in slots]
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, tokens in enumerate(rows):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        mask[at, : len(tokens)] = 1
    ids, mask = ids.to(device), mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    terms = []
    for at, (row, weight) in enumerate(slots):
        start, end = len(row["prompt_ids"]), len(rows[at])
        nll = torch.nn.functional.cross_entropy(
            logits[at, start - 1 : end - 1].float(), ids[at, start:end]
        )
        terms.append(weight * nll)
    return torch.stack(terms).sum()


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> list[int]:
    return random.Random(f"{seed}:rehearsal:{turn}").sample(range(count), count)


def rehearsal_of(cfg: TrainConfig, rows: "dict[str, pl.DataFrame]") -> Rehearsal | None:
    if cfg.rehearsal is None:
        return None
    return Rehearsal(
        rows["rehearsal"].to_dicts(), cfg.rehearsal_rows, cfg.rehearsal.weight, cfg.seed
    )
