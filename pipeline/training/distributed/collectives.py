"""Sharing work among processes: each takes a share of the rows, and all receive every result."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as group

from pipeline.models.logprobs import Ids, OnBatch, batch_rows, compute_logps_by_row

Row = TypeVar("Row")
Key = TypeVar("Key")


def take_share(rows: list[Row]) -> list[Row]:
    """Every n-th row of n processes, so that none gets all the long rows. A lone one takes all."""
    rank, world = rank_and_size()
    return rows[rank::world]


def take_equal_share(rows: list[Row]) -> list[Row]:
    """A share of the same size for every process. To make it so, some rows are taken twice.

    Processes with sharded weights gather them for each forward pass of any of them, so all must
    run equally many passes.
    """
    rank, world = rank_and_size()
    padded = -(-len(rows) // world) * world
    return [rows[at % len(rows)] for at in range(rank, padded, world)]


def gather_rows(results: list[Row]) -> list[Row]:
    """The results of all shares, in the order of the whole. Each process waits for the last."""
    if not _is_distributed():
        return results
    count = group.get_world_size()
    parts: list[list[Row]] = [[] for _ in range(count)]
    group.all_gather_object(parts, results)
    return [parts[at % count][at // count] for at in range(sum(map(len, parts)))]


@dataclass(frozen=True, slots=True)
class BatchPart:
    """One process's rows of a batch that all share. An epoch's last batch may be short."""

    rows: int
    total: int
    full: bool


def split_batches(rows: int, size: int, count: int) -> list[BatchPart]:
    """This process's parts of `count` batches, as accelerate deals rows: `size` to each in turn."""
    rank, world = rank_and_size()
    full = size * world
    totals = [max(0, min(full, rows - batch * full)) for batch in range(count)]
    return [
        BatchPart(max(0, min(size, total - rank * size)), total, total == full) for total in totals
    ]


@contextmanager
def gather_uneven_rows(accelerator: Any, part: BatchPart | None) -> Iterator[None]:
    """Within this, TRL's figures gather unequal numbers of rows; accelerate's gather would hang."""
    if part is None or part.full or not _is_distributed() or "gather" in vars(accelerator):
        yield
        return
    plain = accelerator.gather

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return plain(tensor)
        parts: list[Any] = [None] * group.get_world_size()
        group.all_gather_object(parts, tensor[: part.rows].detach().cpu())
        return torch.cat(parts).to(tensor.device)

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


def merge_results(results: dict[Key, Row]) -> dict[Key, Row]:
    """All processes' results, the same in each. Of a key that two have, the later rank's counts."""
    if not _is_distributed():
        return results
    parts: list[dict[Key, Row]] = [{} for _ in range(group.get_world_size())]
    group.all_gather_object(parts, results)
    return {key: value for part in parts for key, value in part.items()}


def find_least(number: int) -> int:
    """The least of all processes' numbers."""
    if not _is_distributed():
        return number
    numbers = [number] * group.get_world_size()
    group.all_gather_object(numbers, number)
    return min(numbers)


def rank_and_size() -> tuple[int, int]:
    return (group.get_rank(), group.get_world_size()) if _is_distributed() else (0, 1)


def _is_distributed() -> bool:
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def gather_logps(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batch_tokens: int,
    on_batch: OnBatch | None = None,
) -> list[float]:
    """Every completion's log-probability. Processes share the batches, and all get all rows."""
    batches = take_equal_share(batch_rows(prompts, completions, batch_tokens))
    logps = merge_results(compute_logps_by_row(module, prompts, completions, batches, on_batch))
    return [logps[at] for at in range(len(prompts))]
