"""The command `strop`: a table of commands, each a module with `main(words)` that is loaded on use.

`python -m pipeline …` is the same. Words without a command (`recipes=smoke`) are given to `run`.
"""

import io
import locale
import os
import sys
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, TextIO

from pipeline.commands.table import (
    CHOICES,
    COMMANDS,
    HELP,
    PASS_ON,
    RENAMED,
    Command,
    describe_command,
    describe_commands,
    describe_usage,
)
from pipeline.errors import (
    DONE,
    USER_ERROR,
    UserError,
    exit_on_signals,
    explain_disk_fault,
    ignore_signals,
    suggest,
)


class StandardOutput(io.FileIO):
    """Standard output whose reader may leave early, as `head` does: the rest is discarded."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)
        except OSError as error:
            error.filename = error.filename or "standard output"
            raise


def open_output(stream: TextIO | None) -> TextIO:
    """Standard output that can take any character; a replaced stream is left alone."""
    if stream is None:  # it was closed: `strop run … >&-`
        return Path(os.devnull).open("w")
    is_replaced = stream is not sys.__stdout__
    if is_replaced:
        return stream
    raw = io.BufferedWriter(StandardOutput(stream.fileno(), "wb", closefd=False))
    return io.TextIOWrapper(
        raw, stream.encoding, "backslashreplace", line_buffering=stream.isatty()
    )


def use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding.

    All our files are UTF-8, and libraries open theirs by the locale. Child processes inherit it.
    """
    is_utf8 = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    if is_utf8 or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> int:
    use_utf8()
    exit_on_signals()  # before the imports, which take most of the first second
    sys.stdout = open_output(sys.stdout)
    try:
        code = run_command(sys.argv[1:])
        print(end="", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        command = find_command(sys.argv[1:])
        takes_folders = command is not None and CHOICES in command.usage
        if not (explanation := explain_disk_fault(error, takes_folders=takes_folders)):
            raise
        print(explanation, file=sys.stderr)
        sys.stdout = None  # do not try again to write what a full disk did not take
        return USER_ERROR
    finally:
        ignore_signals()
    return code


def find_command(words: list[str]) -> Command | None:
    return COMMANDS.get(words[0], COMMANDS["run"]) if words else None


def run_command(words: list[str]) -> int:
    if not words or words[0] in HELP:
        print(describe_commands())
        return DONE
    name, rest = (words[0], words[1:]) if words[0] in COMMANDS else ("run", words)
    if now := RENAMED.get(words[0]):
        print(f"strop {words[0]} is strop {now} now.\n  {describe_usage(now)}", file=sys.stderr)
        return USER_ERROR
    if name != words[0] and words[0].isidentifier():
        print(f"{words[0]}: not a command. {suggest(words[0], list(COMMANDS))}", file=sys.stderr)
        return USER_ERROR
    command = COMMANDS[name]
    if HELP.intersection(takewhile(lambda word: word != PASS_ON, rest)):
        print(describe_command(name, command))
        return DONE
    return import_module(command.module).main([*command.words, *rest])


if __name__ == "__main__":
    sys.exit(main())
