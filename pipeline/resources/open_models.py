"""Models that stay open between the Steps of one worker, so that Steps that share one load it once.

Whoever is done with a model parks it under a key that says all that it was opened with; the next
Step borrows it by that key. If another model is wanted, all that are parked are closed, to make
room. A process that builds one Step alone keeps nothing.
"""

from collections.abc import Callable
from typing import Any

from pipeline import progress

_keeps = False
_parked: list[tuple[Any, Any, Callable[[], None]]] = []


def keep_between_steps() -> None:
    """This process builds several Steps."""
    global _keeps
    _keeps = True


def are_kept() -> bool:
    return _keeps


def borrow(key: Any, load: Callable[[], Any]) -> Any:
    """The model that was parked under this key; else a new one, after all others are closed."""
    for parked in _parked:
        if parked[0] == key:
            _parked.remove(parked)
            return parked[1]
    close_parked()
    with progress.measure_phase(progress.LOAD):
        return load()


def park(key: Any, model: Any, close: Callable[[], None] = lambda: None) -> None:
    """Leave a model that is open and idle. `close` ends what has to be ended, such as an engine."""
    if _keeps:
        _parked.append((key, model, close))
    else:
        close()


def close_parked() -> None:
    while _parked:
        _, _, close = _parked.pop()
        close()
