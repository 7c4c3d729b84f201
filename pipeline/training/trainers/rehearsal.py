"""Against forgetting: each optimizer step adds the negative log-likelihood of some demonstrations.

The seed and the step's number alone decide which rows a step sees, so a resumed training sees the
same.
"""

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config import TrainConfig

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, list[int]]  # prompt_ids, completion_ids
Slot = tuple[Row, float]  # a row and its weight


class Rehearsal:
    """`count` rows per step, of equal weight however processes and micro-batches share them."""

    def __init__(self, rows: list[Row], count: int, weight: float, seed: int):
        self.rows, self.count, self.weight, self.seed = rows, count, weight, seed

    def select_rows(self, step: int) -> list[Row]:
        """Continue where the step before ended. Each pass through the rows has another order."""
        numbers = range(step * self.count, (step + 1) * self.count)
        places = (divmod(number, len(self.rows)) for number in numbers)
        return [self.rows[_shuffle(self.seed, epoch, len(self.rows))[at]] for epoch, at in places]

    def split_rows(self, step: int, parts: int) -> list[list[Slot]]:
        """The step's rows in parts of equal size. A row that only fills up a part weighs 0."""
        rows, size = self.select_rows(step), -(-self.count // parts)
        weight = self.weight * parts / self.count
        slots = [
            (rows[at % self.count], weight if at < self.count else 0.0)
            for at in range(parts * size)
        ]
        return [slots[part::parts] for part in range(parts)]


def compute_rehearsal_loss(model: Any, slots: list[Slot], device: torch.device) -> torch.Tensor:
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
        # The logits at a position predict the token after it.
        answer_logits = logits[at, start - 1 : end - 1].float()
        nll = torch.nn.functional.cross_entropy(answer_logits, ids[at, start:end])
        terms.append(weight * nll)
    return torch.stack(terms).sum()


@lru_cache(maxsize=2)
def _shuffle(seed: int, epoch: int, count: int) -> list[int]:
    return random.Random(f"{seed}:rehearsal:{epoch}").sample(range(count), count)


def build_rehearsal(cfg: TrainConfig, rows: "dict[str, pl.DataFrame]") -> Rehearsal | None:
    if cfg.rehearsal is None:
        return None
    return Rehearsal(
        rows["rehearsal"].to_dicts(), cfg.rehearsal_rows, cfg.rehearsal.weight, cfg.seed
    )
