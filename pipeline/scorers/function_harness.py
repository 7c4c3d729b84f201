"""Calls a user's function in a separate process, where it may hang, die, print or return anything.

This file is run by itself and imports nothing of ours. A message is eight bytes of length and as
many of data: pickle from the scorer, which is trusted, and JSON to it. The first message names the
function to import.
"""

import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from types import ModuleType
from typing import Any, BinaryIO

LENGTH = struct.Struct(">Q")
EXCERPT = 80  # characters of a value that is not a number
MAX_MESSAGE = 1 << 16  # characters of an exception's message
# An answer is a list of messages, as TRL hands chats to reward functions.
TEXT_HINT = " (the text of an answer is answer[-1]['content'])"
PR_SET_PDEATHSIG = 1


def main() -> None:
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function prints goes to standard error
    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    # A terminal interrupts the whole group: the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    message = read(messages)
    sys.path[:] = message["path"]
    function = import_function(message)
    write(answers, {"fault": function} if isinstance(function, str) else {})
    while not isinstance(function, str) and (arguments := read(messages)) is not None:
        write(answers, call_function(function, arguments))


def read(pipe: BinaryIO) -> Any:
    head = pipe.read(LENGTH.size)
    return pickle.loads(pipe.read(*LENGTH.unpack(head))) if len(head) == LENGTH.size else None


def write(pipe: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


# ── the import ──────────────────────────────────────────────────────────────────────────────────


def import_function(message: dict[str, Any]) -> Callable[..., Any] | str:
    """The function, or why there is none, as JSON: [kind, detail …]."""
    place = message["place"]
    try:
        module = _import_file(place) if message["file"] else importlib.import_module(place)
        function = getattr(module, message["name"], None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            return json.dumps(["absent", *known])
        return json.dumps(["async"]) if inspect.iscoroutinefunction(function) else function
    except BaseException as error:
        return json.dumps(["broken", format_error(error)])


def _import_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the like need it there
    spec.loader.exec_module(module)
    return module


# ── the calls ───────────────────────────────────────────────────────────────────────────────────


def call_function(function: Callable[..., Any], arguments: dict[str, list[Any]]) -> dict[str, Any]:
    """`scores`, each [number or None, its reason]; or `fault`; or `count`, where it is wrong."""
    wanted = len(arguments["completions"])
    try:
        returned = function(**arguments)
        scores = [*islice(iter(returned), wanted + 1)]  # a generator may be endless
        if len(scores) != wanted:
            return {"count": len(returned) if hasattr(returned, "__len__") else len(scores)}
        return {"scores": [to_number(score) for score in scores]}
    except BaseException as error:  # also SystemExit, and whatever its own classes raise
        return {"fault": format_error(error)}


def to_number(score: Any) -> tuple[float | None, str]:
    if score is None:
        return None, ""
    try:
        number = float(score)
    except BaseException:
        return None, f"the function gave {_safe_repr(score)}, which is not a number"
    return (number, "") if math.isfinite(number) else (None, f"the function gave {number}")


def _safe_repr(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException as error:
        return f"a value of type {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"


def format_error(error: BaseException) -> str:
    """The last line of its traceback."""
    try:
        text = traceback.format_exception_only(error)[-1].strip()[:MAX_MESSAGE]
        return text + TEXT_HINT if "'list' object has no attribute" in text else text
    except BaseException:
        return f"{type(error).__name__}, which cannot be written as text"


if __name__ == "__main__":
    main()
