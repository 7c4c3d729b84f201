"""Groups rows of different length into batches, one forward pass each."""

from collections.abc import Iterator


def batch_by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of rows of similar length, in batches of at most `batch_tokens` after padding.

    A longer row is a batch by itself.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
