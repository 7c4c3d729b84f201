"""What several processes look at together: each takes its share of the rows, and all of them know what each found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as group

from pipeline.models.logprobs import Ids, OnBatch, batch_rows, compute_logps_by_row

Row = TypeVar("Row")
Key = TypeVar("Key")


def share(rows: list[Row]) -> list[Row]:
    """Every n-th, so that no process gets the long ones alone; all of them where one process is alone."""
    rank, world = place()
    return rows[rank::world]


def in_step(whole: list[Row]) -> list[Row]:
    """Of what is done one after the other, what this process does: as many as each does, so some is done twice.

    Weights that processes share are brought together for each pass of any of them: nobody may be done early.
    """
    rank, world = place()
    return [whole[at % len(whole)] for at in range(rank, -(-len(whole) // world) * world, world)]


def gathered(found: list[Row]) -> list[Row]:
    """What all processes found in their shares, in the order of the whole; each waits here for the last."""
    if not _several():
        return found
    count = group.get_world_size()
    parts: list[list[Row]] = [[] for _ in range(count)]
    group.all_gather_object(parts, found)
    return [parts[at % count][at // count] for at in range(sum(map(len, parts)))]


@dataclass(frozen=True, slots=True)
class Part:
    """Of the rows that all processes read at once, how many this one has: the last of an epoch may be too few."""

    rows: int
    of: int
    full: bool


def parts_of(rows: int, each: int, count: int) -> list[Part]:
    """Those of this process, as accelerate deals them out: `each` to one process after the other, `count` times."""
    rank, world = place()
    at_once = [max(0, min(each * world, rows - turn * each * world)) for turn in range(count)]
    return [Part(max(0, min(each, of - rank * each)), of, of == each * world) for of in at_once]


@contextmanager
def gathered_by_rows(accelerator: Any, part: Part | None) -> Iterator[None]:
    """Inside, what processes have of unlike many rows is gathered too, for TRL's figures: its own way waits forever."""
    if part is None or part.full or not _several() or "gather" in vars(accelerator):
        yield
        return
    plain = accelerator.gather

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim():
            return plain(tensor)
        found: list[Any] = [None] * group.get_world_size()
        group.all_gather_object(found, tensor[: part.rows].detach().cpu())
        return torch.cat(found).to(tensor.device)

    accelerator.gather = gather
    try:
        yield
    finally:
        del accelerator.gather


def pooled(found: dict[Key, Row]) -> dict[Key, Row]:
    """What all processes found, each of them the same: of what two of them did, what the later one found."""
    if not _several():
        return found
    parts: list[dict[Key, Row]] = [{} for _ in range(group.get_world_size())]
    group.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    return (group.get_rank(), group.get_world_size()) if _several() else (0, 1)


def _several() -> bool:
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def logps_of_all(
    module: Any,
    prompts: list[Ids],
    completions: list[Ids],
    batch_tokens: int,
    on_batch: OnBatch | None = None,
) -> list[float]:
    """The same, of batches that several processes deal out to each other; every one of them knows all."""
    batches = in_step(batch_rows(prompts, completions, batch_tokens))
    found = pooled(compute_logps_by_row(module, prompts, completions, batches, on_batch))
    return [found[at] for at in range(len(prompts))]
