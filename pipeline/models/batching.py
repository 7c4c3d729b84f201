"""Rows of unlike length in batches for one forward pass each."""

from collections.abc import Iterator


def by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions in batches of at most `batch_tokens` after padding, alike in length; a longer row goes alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
