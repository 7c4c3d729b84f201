"""What a person is told when something cannot go on: what was wrong, where, what was expected, what to type now."""

import errno
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

# Exit codes. FOUND is between worker and driver alone: another process built the step meanwhile.
DONE, FAILED, USER_ERROR, ALREADY_BUILT, INTERRUPTED = 0, 1, 2, 3, 75

Result = TypeVar("Result")


class ReportedError(Exception):
    """An error whose text is for a person: whatever it quotes, it can be printed and written."""

    def __init__(self, *said: object):
        super().__init__(*(str(one).encode("utf-8", "backslashreplace").decode() for one in said))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class UserError(ReportedError):
    """Wrong usage, config or input: exit code 2, its text is printed as it stands and no traceback is shown.

    Each argument is a reason by itself.
    """


class UnrenderableTemplate(UserError):
    """A chat template does not take these messages; others it may take."""


class StageError(ReportedError):
    """Something failed while it ran and we know what: exit code 1, its text is printed without a traceback."""


_FULL = (
    "Free space, or give other folders (store=FOLDER, runs=FOLDER), and run the same command again:"
    " finished work is kept."
)
_OTHER_FOLDER = "Make it writable and readable, or give other folders (store=FOLDER, runs=FOLDER), and run the same command again."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.EROFS: _OTHER_FOLDER,
    errno.EIO: "The disk or network share failed: check it (dmesg), then run the same command again.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n 4096), then run the same command again.",
    errno.ENFILE: "Close what holds files open on this machine, then run the same command again.",
}
_ANY_FAULT = "Check this path and its disk, then run the same command again: finished work is kept."


def explain_disk_fault(error: Exception, place: Path | None = None) -> str | None:
    """What a person needs to know of a fault of the disk; None where the error is another one.

    `place` is named where the error names no file, as a full disk does. safetensors says a full disk in words alone.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and os.strerror(errno.ENOSPC) in str(error):
        number = errno.ENOSPC
    where = getattr(error, "filename", None) or (place if number in _REMEDIES else None)
    if number is None or where is None or isinstance(error, ConnectionError):
        return None
    return f"{where}: {os.strerror(number)}.\n  {_REMEDIES.get(number, _ANY_FAULT)}"


def exit_on_signals() -> None:
    """SIGTERM and SIGINT end this process at once with 75: for the time in which nothing is under way yet.

    Nothing is raised: an exception in the middle of an import would end in that library's own traceback.
    """

    def leave(number: int, frame: Any) -> NoReturn:
        words = f"stopped by {signal.Signals(number).name}; the same command goes on from here\n"
        os.write(2, words.encode())
        os._exit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def run_all(asked: Iterable[Callable[[], Result]]) -> list[Result]:
    """What each of them answers; where some refuse, all that they say, at once."""
    answers, faults = _run_each(asked)
    if faults:
        raise UserError(*faults)
    return answers


def collect_faults(asked: Iterable[Callable[[], object]]) -> list[str]:
    """Every reason of those that refuse, once."""
    return _run_each(asked)[1]


def _run_each(asked: Iterable[Callable[[], Result]]) -> tuple[list[Result], list[str]]:
    answers, faults = [], dict[str, None]()
    for one in asked:
        try:
            answers.append(one())
        except UserError as refusal:
            faults |= dict.fromkeys(refusal.args)
    return answers, [*faults]


def make_printable(text: str, most: int = 300) -> str:
    """Text from outside as it can be printed and kept: of this length, without half characters and NUL."""
    spelled = text[: most + 1].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return spelled if len(spelled) <= most else f"{spelled[:most]}…"


def suggest(word: str, known: list[str]) -> str:
    """`Did you mean beta? Known: beta, loss, …` for a word that is none of the known ones."""
    import difflib

    close = difflib.get_close_matches(word, known, n=2)
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}Known: {', '.join(sorted(known))}"


def pluralize(count: int, noun: str, *, grouped: bool = False) -> str:
    """`grouped`: with commas between thousands, for figures that are read more than typed."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}" if grouped else f"{count} {noun}{ending}"
