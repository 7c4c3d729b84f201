"""What a person is told when something cannot go on: what was wrong, where, what was expected, what to type now."""

from collections.abc import Callable, Iterable
from typing import TypeVar

# Exit codes. FOUND is between worker and driver alone: another process built the step meanwhile.
DONE, BROKE, REFUSED, FOUND, STOPPED = 0, 1, 2, 3, 75

Answer = TypeVar("Answer")


class Said(Exception):
    """An error whose text is for a person: whatever it quotes, it can be printed and written."""

    def __init__(self, said: object = ""):
        super().__init__(str(said).encode("utf-8", "backslashreplace").decode())


class Refusal(Said):
    """Wrong usage, config or input: exit code 2, its text is printed as it stands and no traceback is shown."""


class Broken(Said):
    """Something failed while it ran and we know what: exit code 1, its text is printed without a traceback."""


def together(asked: Iterable[Callable[[], Answer]]) -> list[Answer]:
    """What each of them answers; where some refuse, all that they say, at once."""
    answers, faults = [], dict[str, None]()
    for one in asked:
        try:
            answers.append(one())
        except Refusal as refusal:
            faults[str(refusal)] = None
    if faults:
        raise Refusal("\n".join(faults))
    return answers


def shown(text: str, most: int = 300) -> str:
    """Text from outside as it can be printed and kept: of this length, without half characters and NUL."""
    spelled = text[: most + 1].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return spelled if len(spelled) <= most else f"{spelled[:most]}…"


def nearest(word: str, known: list[str]) -> str:
    """`Did you mean beta? Known: beta, loss, …` for a word that is none of the known ones."""
    import difflib

    close = difflib.get_close_matches(word, known, n=2)
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}Known: {', '.join(sorted(known))}"
