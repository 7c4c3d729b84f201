"""What several processes look at together: each takes its share of the rows, and all of them know what each found."""

from typing import TypeVar

import torch.distributed as group

Row = TypeVar("Row")


def share(rows: list[Row]) -> list[Row]:
    """Every n-th, so that no process gets the long ones alone; all of them where one process is alone."""
    return rows[group.get_rank() :: group.get_world_size()] if _several() else rows


def gathered(found: list[Row]) -> list[Row]:
    """What all processes found in their shares, in the order of the whole; each waits here for the last."""
    if not _several():
        return found
    count = group.get_world_size()
    parts: list[list[Row]] = [[] for _ in range(count)]
    group.all_gather_object(parts, found)
    return [parts[at % count][at // count] for at in range(sum(map(len, parts)))]


def _several() -> bool:
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1
