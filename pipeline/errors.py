"""Errors for the user: what is wrong, where, what was expected, what to type now."""

import errno
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

# Exit codes. Only workers use ALREADY_BUILT: another process built the step in the meantime.
DONE, FAILED, USER_ERROR, ALREADY_BUILT, INTERRUPTED = 0, 1, 2, 3, 75
MOST_ENTRIES = 2000  # of a folder, among which a name like a missing one is searched
RESUME = "Run the same command to resume."
MEANT = "Did you mean"

Result = TypeVar("Result")


class ReportedError(Exception):
    """An error whose text is for the user. Whatever it quotes, it can be printed and written."""

    def __init__(self, *reasons: object):
        texts = (str(reason).encode("utf-8", "backslashreplace") for reason in reasons)
        super().__init__(*(text.decode() for text in texts))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class UserError(ReportedError):
    """Wrong usage, config or input: exit code 2, its text is printed without a traceback.

    Each argument is one independent reason.
    """


class UnrenderableTemplate(UserError):
    """A chat template cannot render these messages; it may render others."""


class StageError(ReportedError):
    """A known failure while a stage ran: exit code 1, its text is printed without a traceback."""


class WorkPending(ReportedError):
    """A stage waits for work elsewhere, such as a service's batch: exit code 75."""


_FOLDERS = ", or give other folders (store=FOLDER, runs=FOLDER),"
_FULL = f"Free space{_FOLDERS} and run the same command again: finished work is kept."
_OTHER_FOLDER = f"Make it writable and readable{_FOLDERS} and run the same command again."
_LARGER = "Raise the limit on a file's size (ulimit -f unlimited) and run the same command again."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _LARGER,
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.EROFS: _OTHER_FOLDER,
    errno.EIO: "The disk or network share failed. Check it (dmesg) and run the same command again.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n 4096) and run the same command again.",
    errno.ENFILE: "Close programs that hold files open and run the same command again.",
}
_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")  # as safetensors, written in Rust, ends it
_ANY_FAULT = "Check this path and its disk, then run the same command again: finished work is kept."


def explain_disk_fault(
    error: Exception, place: Path | None = None, takes_folders: bool = True
) -> str | None:
    """Explain a disk fault to the user; None for any other error.

    `place` is named where the error names no file, as for a full disk. safetensors has a disk's
    fault in its text alone, with its number. `takes_folders`: whether the command takes store= and
    runs=.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _NUMBER_IN_TEXT.search(str(error))):
        number = int(found[1])
    if number is None and os.strerror(errno.ENOSPC) in str(error):
        number = errno.ENOSPC
    where = getattr(error, "filename", None) or (place if number in _REMEDIES else None)
    if number is None or where is None or isinstance(error, ConnectionError):
        return None
    remedy = _REMEDIES.get(number, _ANY_FAULT)
    remedy = remedy if takes_folders else remedy.replace(_FOLDERS, "")
    return f"{where}: {os.strerror(number)}.\n  {remedy}"


def exit_on_signals(remedy: str = RESUME) -> None:
    """Exit at once with code 75 on SIGTERM and SIGINT, before any work has started.

    Nothing is raised: an exception during an import would end in that library's traceback.
    """

    def leave(number: int, frame: Any) -> NoReturn:
        os.write(2, f"{describe_interrupt(signal.Signals(number).name, remedy)}\n".encode())
        os._exit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def unwind_on_signals() -> None:
    """Exit with code 75 on SIGTERM and SIGINT after what is half written was removed."""

    def leave(number: int, frame: Any) -> NoReturn:
        raise SystemExit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def ignore_signals() -> None:
    """Ignore SIGTERM and SIGINT from here on: the exit code is decided.

    With a handler of ours, Python would restore the default as it ends, and one more Ctrl-C would
    end it by the signal.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def describe_interrupt(signal_name: str, remedy: str = RESUME) -> str:
    return f"Interrupted ({signal_name}). {remedy}"


def run_all(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Every call's result. If any raises a UserError, raise one with all their reasons."""
    results, faults = _run_each(calls)
    if faults:
        raise UserError(*faults)
    return results


def collect_faults(calls: Iterable[Callable[[], object]]) -> list[str]:
    """The reasons of all UserErrors that these calls raise, each once."""
    return _run_each(calls)[1]


def _run_each(calls: Iterable[Callable[[], Result]]) -> tuple[list[Result], list[str]]:
    results, faults = [], dict[str, None]()
    for call in calls:
        try:
            results.append(call())
        except UserError as error:
            faults |= dict.fromkeys(error.args)
    return results, [*faults]


def make_printable(text: str, limit: int = 300) -> str:
    """Cut text from outside to `limit` characters and escape lone surrogates and NUL."""
    escaped = text[: limit + 1].encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}…"


def format_move(path: Path, ending: str = "kept") -> str:
    """The command that moves a file or folder to a name next to it that is free."""
    free, number = path.with_name(f"{path.name}.{ending}"), 2
    while os.path.lexists(free):
        free, number = path.with_name(f"{path.name}.{ending}-{number}"), number + 1
    return shlex.join(["mv", "-n", str(path), str(free)])


def describe_place(path: str | Path) -> str:
    """` (looked for /home/me/a.jsonl; there is b.jsonl)`, where a path is missing.

    An absolute one is not repeated, and an entry of the folder is named only if its name is near.
    """
    place = Path(path)
    with suppress(RuntimeError):  # `~name` of no user
        place = place.expanduser()
    try:
        if not str(path) or place.exists():
            return ""
    except OSError:  # such as a name that is too long
        return ""
    parts = [] if place.is_absolute() else [f"looked for {place.absolute()}"]
    if near := _find_near_name(place):
        parts.append(f"there is {near}")
    return f" ({'; '.join(parts)})" if parts else ""


def _find_near_name(place: Path) -> str | None:
    import difflib

    with suppress(OSError):
        entries = islice(place.parent.iterdir(), MOST_ENTRIES)
        names = [entry.name for entry in entries if entry.name != place.name]
        close = difflib.get_close_matches(place.name, names, n=1, cutoff=0.75)
        return str(place.with_name(close[0])) if close else None
    return None


def suggest(word: str, known: list[str]) -> str:
    """`Did you mean beta? Known: beta, loss, …`, for an unknown word."""
    import difflib

    close = difflib.get_close_matches(word, known, n=2)
    guess = f"{MEANT} {' or '.join(close)}? " if close else ""
    return f"{guess}Known: {', '.join(sorted(known))}"


def pluralize(count: int, noun: str, *, grouped: bool = False) -> str:
    """`3 steps`, `1 step`. `grouped` puts commas between thousands."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}" if grouped else f"{count} {noun}{ending}"
