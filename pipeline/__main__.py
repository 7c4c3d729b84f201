"""The command `strop`: a table of commands, each a module with `main(words)` that is loaded on use.

`python -m pipeline …` is the same. Words without a command (`recipes=smoke`) are given to `run`.
"""

import io
import locale
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import (
    DONE,
    USER_ERROR,
    UserError,
    exit_on_signals,
    explain_disk_fault,
    ignore_signals,
    suggest,
)

HELP = {"-h", "--help"}
CHOICES = "[recipes=NAME] [group=choice …] [key=value …]"


@dataclass(frozen=True)
class Command:
    summary: str
    usage: str
    example: str
    module: str
    words: tuple[str, ...] = ()  # put before the words that the user types


COMMANDS = {
    "run": Command(
        "Go from an SFT checkpoint to a report. Steps that the store has are not repeated.",
        f"[--config-dir FOLDER] {CHOICES} [until=STAGE[@ROUND]]",
        "strop run sft.model=./my-sft prompts.path=prompts.jsonl score=reward reward=checkpoint"
        " reward.model=./my-reward pair.scorer=reward",
        "pipeline.commands.run",
    ),
    "plan": Command(
        "Show what a run would do and what it would refuse. Writes nothing, needs no network.",
        f"[--config-dir FOLDER] {CHOICES}",
        "strop plan recipes=smoke train.beta=0.05",
        "pipeline.commands.run",
        ("dry_run=true",),
    ),
    "pilot": Command(
        "Run 10, then 50 prompts through every stage; estimate the whole run's time and cost.",
        f"[--config-dir FOLDER] {CHOICES}",
        "strop pilot recipes=mine",
        "pipeline.commands.pilot.__main__",
    ),
    "sweep": Command(
        "Run each point of a grid. Shared steps are built once; a page compares the points.",
        f"[--config-dir FOLDER] {CHOICES} key=value,value …",
        "strop sweep recipes=smoke train.beta=0.05,0.2",
        "pipeline.commands.run",
        ("-m",),
    ),
    "trace": Command(
        "Follow one prompt: its candidates, their scores, and its pair or why it has none.",
        "PROMPT_ID [RUN]",
        "strop trace 3fa9c1d20b7e runs/latest",
        "pipeline.commands.trace",
    ),
    "compare": Command(
        "Compare finished runs or evaluated models on the prompts that they share.",
        "[NAME=]RUN[:MODEL] … [store=store] [out=runs/compare/TIME]"
        " [level=0.95] [resamples=9999] [seed=42]",
        "strop compare old=runs/mine/A new=runs/mine/B",
        "pipeline.commands.compare",
    ),
    "label": Command(
        "Write pairs of answers for annotators to judge, as a page that works offline.",
        "[RUN] [of=ROUND or of=MODEL,MODEL] [pairs=100] [seed=0]",
        "strop label runs/latest of=test-sft,test-round-1",
        "pipeline.commands.label",
    ),
    "calibrate": Command(
        "Compare scorers with annotators, and with the rule that the longer answer wins.",
        f"FILE [scorer=NAME,…] [out=calibration.json] {CHOICES}",
        "strop calibrate verdicts.jsonl scorer=judge recipes=mine",
        "pipeline.commands.calibrate",
    ),
    "edit": Command(
        "Write a run's pairs to pairs.jsonl, to correct and give back as pair.edits=FILE.",
        "[RUN] [ROUND]",
        "strop edit runs/latest 1",
        "pipeline.commands.edit",
    ),
    "merge": Command(
        "Merge a trained adapter into its base, for tools that take no adapter.",
        "RUN [OUT]",
        "strop merge runs/latest my-model",
        "pipeline.commands.merge",
    ),
    "store": Command(
        "List the store and the runs that use it. --prune asks, then removes what no run needs.",
        "[store=store] [runs=runs] [--prune [--yes]] [forget=RUNS_FOLDER]",
        "strop store --prune",
        "pipeline.commands.store",
    ),
    "report": Command(
        "Write a run's report again with the present code. Loads no model.",
        "[RUN]",
        "strop report runs/latest",
        "pipeline.commands.report",
    ),
}


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
        if not (explanation := explain_disk_fault(error)):
            raise
        print(explanation, file=sys.stderr)
        sys.stdout = None  # do not try again to write what a full disk did not take
        return USER_ERROR
    finally:
        ignore_signals()
    return code


def run_command(words: list[str]) -> int:
    if not words or words[0] in HELP:
        print(describe_commands())
        return DONE
    name, rest = (words[0], words[1:]) if words[0] in COMMANDS else ("run", words)
    if name != words[0] and words[0].isidentifier():
        print(f"{words[0]}: not a command. {suggest(words[0], list(COMMANDS))}", file=sys.stderr)
        return USER_ERROR
    command = COMMANDS[name]
    if HELP & set(rest):
        print(describe_command(name, command))
        return DONE
    return import_module(command.module).main([*command.words, *rest])


def describe_commands() -> str:
    lines = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "strop COMMAND …",
            "",
            *lines,
            "",
            "strop COMMAND --help shows its arguments and an example.",
        ]
    )


def describe_command(name: str, command: Command) -> str:
    return f"strop {name} {command.usage}\n\n  {command.summary}\n\n  {command.example}"


if __name__ == "__main__":
    sys.exit(main())
