"""Shared by the fuzz tests: any values that JSON can hold, and one property tried on them."""

import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.faults.planted import SECONDS

FEW, MANY = 60, 200
QUIET = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "a\udfffb",
    "\u202e",
    "x" * 5000,
    "A",
    "B",
    "TIE",
    "3",
    "null",
    "✗ ",
]
ODD_NUMBERS = [
    0,
    -1,
    2**31,
    2**63,
    10**30,
    10**400,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    1.5,
    7.0,
]

texts = st.sampled_from(ODD_TEXTS) | st.text(st.characters(), max_size=20)  # half characters too
leaves = (
    st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | st.integers() | st.floats() | texts
)


def wrapped(value: Any, depth: int) -> Any:
    for at in range(depth):
        value = [value] if at % 2 else {"k": value}
    return value


values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
) | st.builds(wrapped, leaves, st.sampled_from([1, 63, 64, 65, 200, 700]))


def briefly(test: Callable[..., None], **strategies: Any) -> None:
    settings(max_examples=FEW, **QUIET)(given(**strategies)(test))()


def for_a_while(test: Callable[..., None], **strategies: Any) -> None:
    """Round after round, each from another seed, which a failure names."""
    ends, number = time.monotonic() + SECONDS, 0
    phases = [Phase.generate, Phase.target, Phase.shrink]
    while time.monotonic() < ends:
        number += 1

        def fresh(**drawn: Any) -> None:
            if time.monotonic() < ends:
                test(**drawn)

        try:
            seed(number)(
                settings(max_examples=MANY, phases=phases, **QUIET)(given(**strategies)(fresh))
            )()
        except BaseException as error:
            error.add_note(f"hypothesis seed {number}")
            raise
