"""Texts by what Arrow keeps beside them, so that most of them need not be read.

Of each text it keeps a view of sixteen bytes: four of its length, its first four (zeros where it is shorter), and eight
that say where it lies.
"""

import re
from functools import cache
from typing import Any

import numpy as np
import polars as pl


def glance(texts: pl.Series) -> np.ndarray:
    """Length and first four bytes as one number: equal texts have equal ones."""
    return _views(texts, np.uint64)[:, 0]


def matching(texts: pl.Series, pattern: str, opening: bytes) -> pl.Series:
    """Which texts match `pattern`. Only those are read whose first two bytes match `opening`."""
    first_two = _views(texts, np.uint16)[:, 2]
    at = np.flatnonzero(_matches(opening)[first_two])
    found = np.zeros(len(texts), dtype=bool)
    found[at] = texts.gather(at).str.contains(pattern).to_numpy()
    return pl.Series(found)


@cache
def _matches(pattern: bytes) -> np.ndarray:
    """Whether two bytes match, by the number that they are in a view."""
    every = (number.to_bytes(2, "little") for number in range(1 << 16))
    return np.array([re.match(pattern, two) is not None for two in every])


def _views(texts: pl.Series, kind: Any) -> np.ndarray:
    """A row for each text: its view as numbers of this kind."""
    views = texts.to_arrow(compat_level=pl.CompatLevel.newest())
    numbers = np.frombuffer(views.buffers()[1], kind).reshape(-1, 16 // np.dtype(kind).itemsize)
    return numbers[views.offset : views.offset + len(views)]
