"""What calls a user's function, in a process of its own: there it may hang, die, print or give back anything.

It is started as a file by itself and imports nothing of ours. A message is eight bytes of length and as many of data:
pickled from the scorer, which is trusted, and JSON to it. The first one says what to import.
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
SHOWN = 80  # characters of a value that is no number
LONGEST = 1 << 16  # characters of a message
DIE_WITH_PARENT = 1


def main() -> None:
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function prints goes where its faults go
    for printed in (sys.stdout, sys.stderr):
        printed.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # of a terminal's whole group: who called us ends us
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    told = read(asked)
    sys.path[:] = told["path"]
    said = imported(told)
    write(answers, {"fault": said} if isinstance(said, str) else {})
    while not isinstance(said, str) and (arguments := read(asked)) is not None:
        write(answers, called(said, arguments))


def read(pipe: BinaryIO) -> Any:
    head = pipe.read(LENGTH.size)
    return pickle.loads(pipe.read(*LENGTH.unpack(head))) if len(head) == LENGTH.size else None


def write(pipe: BinaryIO, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode()
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


# ── what is imported ──────────────────────────────────────────────────────────────────────────────────────────────


def imported(told: dict[str, Any]) -> Callable[..., Any] | str:
    """The function, or why there is none, as JSON: [kind, detail …]."""
    try:
        module = (
            _from_file(told["place"]) if told["file"] else importlib.import_module(told["place"])
        )
        function = getattr(module, told["name"], None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            return json.dumps(["absent", *known])
        return json.dumps(["async"]) if inspect.iscoroutinefunction(function) else function
    except BaseException as error:
        return json.dumps(["broken", last_line(error)])


def _from_file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("user_scorer", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what it defines, such as dataclasses, looks its module up
    spec.loader.exec_module(module)
    return module


# ── what is called ────────────────────────────────────────────────────────────────────────────────────────────────


def called(function: Callable[..., Any], arguments: dict[str, list[Any]]) -> dict[str, Any]:
    """`scores`, each [number or None, why it is none]; or `fault`, or how many there were of another number."""
    wanted = len(arguments["completions"])
    try:
        given = function(**arguments)
        scores = [*islice(iter(given), wanted + 1)]  # a generator need not end
        if len(scores) != wanted:
            return {"count": len(given) if hasattr(given, "__len__") else len(scores)}
        return {"scores": [number_of(score) for score in scores]}
    except BaseException as error:  # also SystemExit, and whatever its own classes raise
        return {"fault": last_line(error)}


def number_of(score: Any) -> tuple[float | None, str]:
    if score is None:
        return None, ""
    try:
        number = float(score)
    except BaseException:
        return None, f"the function gave {_spelled(score)}, which is no number"
    return (number, "") if math.isfinite(number) else (None, f"the function gave {number}")


def _spelled(value: Any) -> str:
    try:
        text = repr(value)
    except BaseException as error:
        return f"a value of type {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def last_line(error: BaseException) -> str:
    try:
        return traceback.format_exception_only(error)[-1].strip()[:LONGEST]
    except BaseException:
        return f"{type(error).__name__}, which cannot be written as text"


if __name__ == "__main__":
    main()
