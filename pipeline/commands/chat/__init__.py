"""`strop chat A [B]`: talk with one model, or with two and their answers next to each other.

A and B are words of `commands/find_model.py`. Each model keeps its own conversation and samples as
the evaluation of its run did, except for the knobs that are typed.
"""

import json
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import hardware
from pipeline.commands.chat.columns import fits_columns, lay_columns, make_safe
from pipeline.commands.find_model import FoundModel, find_model, silence_libraries
from pipeline.commands.table import LATEST, describe_usage, parse_words, reports_errors
from pipeline.errors import DONE, INTERRUPTED, UserError

# For a model without a run, whose evaluation would say it.
DEFAULTS: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.95,
    "min_p": 0.0,
    "max_tokens": 512,
    "stop": [],
    "system": None,
}
# A knob's type, its lowest and its highest value.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 10),
    "top_p": (float, 1e-9, 1),
    "min_p": (float, 0, 1),
    "max_tokens": (int, 1, 1_000_000),
    "seed": (int, 0, 2**62),
}
DTYPES = ("auto", "float32", "bfloat16", "float16")
HELP = "/reset begins a new conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer."


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("chat", arguments)
    typed = {name: value for name, value in words.knobs.items() if value is not None}
    check_knobs(typed)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    with tempfile.TemporaryDirectory(prefix="strop-chat-") as scratch:
        found = [
            find_model(word, Path(scratch) / str(number))
            for number, word in enumerate(words.places or [LATEST])
        ]
        try:
            speakers = open_speakers(found, typed)
        except KeyboardInterrupt:
            return INTERRUPTED
        converse(speakers)
    return DONE


def check_knobs(typed: Mapping[str, str]) -> None:
    for name, (kind, lowest, highest) in NUMBERS.items():
        if name in typed and not _is_number(typed[name], kind, lowest, highest):
            number = "a whole number" if kind is int else "a number"
            least = "above 0" if name == "top_p" else f"from {lowest:g}"
            raise UserError(
                f"{name}={typed[name]}: expected {number} {least} to {highest:g}.\n"
                f"  {describe_usage('chat')}"
            )
    if typed.get("dtype", hardware.AUTO) not in DTYPES:
        raise UserError(f"dtype={typed['dtype']}: expected one of {', '.join(DTYPES)}.")
    if "template_kwargs" in typed:
        _parse_template_kwargs(typed["template_kwargs"])


def _is_number(value: str, kind: type, lowest: float, highest: float) -> bool:
    try:
        return lowest <= kind(value) <= highest
    except ValueError:
        return False


def _parse_template_kwargs(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"template_kwargs={text}: expected a JSON object,"
            """ such as template_kwargs='{"enable_thinking": false}'."""
        )
    return value


def open_speakers(found: list[FoundModel], typed: Mapping[str, str]) -> list[Any]:
    from pipeline.commands.chat.speaker import ChatSettings, Speaker

    silence_libraries()
    seed = int(typed.get("seed", secrets.randbits(32)))
    speakers = []
    for one in found:
        values = choose_settings(one, typed, seed)
        speakers.append(Speaker(one, ChatSettings(**values)))
        print(f"{one.name} · {describe_settings(values)}", file=sys.stderr)
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    return speakers


def choose_settings(found: FoundModel, typed: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What was typed, or else what the model's run has, or else the defaults."""
    known = {**DEFAULTS, **found.read_answer_settings()}
    numbers = {name: NUMBERS[name][0](typed.get(name, known.get(name, seed))) for name in NUMBERS}
    kwargs = typed.get("template_kwargs")
    return {
        **numbers,
        "stop": tuple(known["stop"]),
        "system": typed.get("system", known["system"]),
        "template_kwargs": (
            _parse_template_kwargs(kwargs) if kwargs else found.read_template_kwargs()
        ),
        "dtype": hardware.resolve_dtype(typed.get("dtype", found.read_dtype())),
    }


def describe_settings(values: Mapping[str, Any]) -> str:
    texts = [
        f"temperature {values['temperature']:g}",
        f"top_p {values['top_p']:g}",
        f"at most {values['max_tokens']} tokens",
        f"seed {values['seed']}",
        values["dtype"],
    ]
    return " · ".join(texts)


def converse(speakers: list[Any]) -> None:
    """Answer each line of standard input until it ends."""
    while (question := read_question()) is not None:
        match question.strip():
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                for speaker in speakers:
                    speaker.reset()
                print("A new conversation.", file=sys.stderr)
            case text:
                try:
                    show_answers(speakers, text)
                except UserError as error:
                    print(error, file=sys.stderr)


def read_question() -> str | None:
    """A line; None at the end of the input. Ctrl-C gives up the line that was begun."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    import readline  # noqa: F401  (input() then edits the line and knows earlier ones)

    while True:
        try:
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\nCtrl-D ends.", file=sys.stderr)


def show_answers(speakers: list[Any], question: str) -> None:
    width = shutil.get_terminal_size().columns
    if len(speakers) == 1:
        speakers[0].answer(question, _print_text)
        print("\n")
    elif sys.stdout.isatty() and fits_columns(len(speakers), width):
        answers = [_wait_for_answer(speaker, question) for speaker in speakers]
        heads = [f"{speaker.name}\n\n" for speaker in speakers]
        texts = [head + answer for head, answer in zip(heads, answers, strict=True)]
        print("\n".join(lay_columns(texts, width)), end="\n\n")
    else:
        for speaker in speakers:
            print(f"{speaker.name}:")
            speaker.answer(question, _print_text)
            print("\n")


def _print_text(text: str) -> None:
    print(make_safe(text), end="", flush=True)


def _wait_for_answer(speaker: Any, question: str) -> str:
    """The whole answer; until it is there, the terminal shows how much there is of it."""
    characters = 0

    def count_characters(text: str) -> None:
        nonlocal characters
        characters += len(text)
        print(f"\r{speaker.name} answers: {characters} characters", end="", flush=True)

    answer: str = speaker.answer(question, count_characters)
    print("\r\033[K", end="", flush=True)
    return answer
