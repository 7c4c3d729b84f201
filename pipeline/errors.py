"""What a person is told when something cannot go on: what was wrong, where, what was expected, what to type now."""

from collections.abc import Callable, Iterable
from typing import TypeVar

# Exit codes. FOUND is between worker and driver alone: another process built the step meanwhile.
DONE, BROKE, REFUSED, FOUND, STOPPED = 0, 1, 2, 3, 75

Answer = TypeVar("Answer")


class Refusal(Exception):
    """Wrong usage, config or input: exit code 2, its text is printed as it stands and no traceback is shown.

    Each argument is a reason by itself.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Broken(Exception):
    """Something failed while it ran and we know what: exit code 1, its text is printed without a traceback."""


def together(asked: Iterable[Callable[[], Answer]]) -> list[Answer]:
    """What each of them answers; where some refuse, all that they say, at once."""
    answers, faults = _collect(asked)
    if faults:
        raise Refusal(*faults)
    return answers


def refusals(asked: Iterable[Callable[[], object]]) -> list[str]:
    """Every reason of those that refuse, once."""
    return _collect(asked)[1]


def _collect(asked: Iterable[Callable[[], Answer]]) -> tuple[list[Answer], list[str]]:
    answers, faults = [], dict[str, None]()
    for one in asked:
        try:
            answers.append(one())
        except Refusal as refusal:
            faults |= dict.fromkeys(refusal.args)
    return answers, [*faults]


def nearest(word: str, known: list[str]) -> str:
    """`Did you mean beta? Known: beta, loss, …` for a word that is none of the known ones."""
    import difflib

    close = difflib.get_close_matches(word, known, n=2)
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}Known: {', '.join(sorted(known))}"
