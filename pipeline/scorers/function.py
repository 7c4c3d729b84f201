"""A user's own function in the shape of TRL's reward functions: it works in both places.

It is called once per prompt, as TRL calls it: `prompts` and `completions` are lists of lists of
messages, and every column of the prompt is a list of the same length. Prompts with tools have them
as the column `tools`, and their calls in OpenAI's shape. It returns a number for each; None means
that it has no opinion.

It runs in a separate process (`function_harness`), since nothing else can end a function that
hangs. A call that takes longer than `runtime.timeout`, or that ends the process, fails the answers
of its prompt. What it prints goes to the log of the step, with the keys in the environment masked.
"""

import json
import os
import pickle
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.backends import api_client
from pipeline.config import Function, FunctionScorer
from pipeline.data.tool_turns import unpack_messages
from pipeline.errors import UserError, make_printable, pluralize, suggest
from pipeline.scorers import Answer, Score
from pipeline.scorers.function_harness import LENGTH

HARNESS = Path(__file__).with_name("function_harness.py")
# Calls in a row that hang or end the process: the others would fail as well.
MAX_FAILURES_IN_A_ROW = 3
MAX_LINE = 1 << 20  # bytes of a printed line that are read
MAX_PRINTED = 2000  # characters of it that are kept
PIPE_CHUNK = 1 << 16


class UserFunction:
    def __init__(self, cfg: FunctionScorer, knob: str = "score.scorers.NAME"):
        self.cfg, self.knob = cfg, knob
        self._process: FunctionProcess | None = None
        self._failures_in_a_row = 0

    def score(self, answers: list[Answer]) -> Iterator[Score]:
        for _, candidates in groupby(answers, key=lambda answer: answer.prompt_id):
            yield from self._score_prompt(list(candidates))

    def close(self) -> None:
        if self._process:
            self._process.stop()
            self._process = None

    def _score_prompt(self, answers: list[Answer]) -> Iterator[Score]:
        self._process = self._process or self._start_process()
        try:
            result = self._process.call(build_arguments(answers), self.cfg.runtime.timeout)
            self._failures_in_a_row = 0
        except CallFailed as failure:
            self.close()
            self._count_failure(failure)
            result = {"fault": f"the function {failure}"}
        if "scores" in result:
            yield from (
                make_score(answer, *score)
                for answer, score in zip(answers, result["scores"], strict=True)
            )
            return
        count = pluralize(result.get("count", 0), "score")
        wrong_count = f"the function gave {count} for {pluralize(len(answers), 'completion')}"
        # It fails its rows, not the run; they are counted.
        fault = clean_detail(result.get("fault", wrong_count))
        yield from (Score(answer.sample_id, None, detail=fault) for answer in answers)

    def _count_failure(self, failure: "CallFailed") -> None:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            timeout = f"{self.knob}.runtime.timeout={self.cfg.runtime.timeout:g}"
            raise UserError(
                f"{self.knob}.function={self.cfg.function}: {MAX_FAILURES_IN_A_ROW} calls in a row"
                f" failed: it {failure}.\n"
                "  Fix it: a changed file scores everything anew. If calls need longer, raise"
                f" {timeout} and run the same command again: finished shards are kept."
            ) from None

    def _start_process(self) -> "FunctionProcess":
        process = FunctionProcess()
        try:
            process.load(self.cfg.function, self.cfg.runtime.timeout, self.knob)
        except CallFailed as failure:
            process.stop()
            function = self.cfg.function
            raise UserError(
                f"{self.knob}.function={function}: to import {function.source} {failure}.\n"
                f"  Check that it imports by itself, or raise {self.knob}.runtime.timeout."
            ) from None
        except BaseException:
            process.stop()
            raise
        return process


def make_score(answer: Answer, score: float | None, detail: str) -> Score:
    if score is None and not detail:
        return Score(answer.sample_id, None, detail="the function has no opinion", abstained=True)
    return Score(answer.sample_id, score, detail=clean_detail(detail))


def clean_detail(detail: str) -> str:
    """Mask keys before cutting, so that no half of a key is left."""
    return make_printable(api_client.mask_secrets(detail))


def build_arguments(answers: list[Answer]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for answer in answers for name in answer.columns)
    unpacked = [unpack_messages(answer.prompt) for answer in answers]
    tools = [tools or None for _, tools in unpacked]
    return {
        "prompts": [messages for messages, _ in unpacked],
        "completions": [
            [{"role": "assistant", "content": answer.completion}] for answer in answers
        ],
        **{name: [answer.columns.get(name) for answer in answers] for name in names},
        **({"tools": tools} if any(tools) else {}),
    }


# ── the process ─────────────────────────────────────────────────────────────────────────────────


class CallFailed(Exception):
    """A call without an answer: it took too long, or the process has ended."""


class FunctionProcess:
    """It stays in our process group, and so ends with the stage.

    A thread repeats what it prints.
    """

    def __init__(self) -> None:
        # -B: a plan calls the function too, and writes nothing.
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-P", str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._relay = threading.Thread(
            target=_relay_output, args=[self._process.stderr], daemon=True
        )
        self._relay.start()

    def load(self, function: Function, timeout: float, knob: str) -> None:
        place = str(Path(function.source).expanduser()) if function.file else function.source
        message = {
            "path": sys.path,
            "place": place,
            "file": bool(function.file),
            "name": function.name,
        }
        answer = self.call(message, timeout)
        if "fault" in answer:
            raise build_import_error(knob, function, *json.loads(answer["fault"]))

    def call(self, message: Any, timeout: float) -> dict[str, Any]:
        """Send a message and wait for the answer, both within `timeout` seconds."""
        data = pickle.dumps(message)
        unsent, received = memoryview(LENGTH.pack(len(data)) + data), bytearray()
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as ready:
            ready.register(self._in, selectors.EVENT_WRITE)
            ready.register(self._out, selectors.EVENT_READ)
            while not _is_complete(received):
                events = ready.select(left) if (left := deadline - time.monotonic()) > 0 else []
                if not events:
                    raise CallFailed(f"took longer than {timeout:g} s")
                for key, _ in events:
                    if key.fd == self._in:
                        unsent = self._send(unsent)
                        if not unsent:
                            ready.unregister(self._in)
                    else:
                        received += self._receive()
        answer: dict[str, Any] = json.loads(received[LENGTH.size :])
        return answer

    def _send(self, unsent: memoryview) -> memoryview:
        """What is left of `unsent`."""
        try:
            return unsent[os.write(self._in, unsent[:PIPE_CHUNK]) :]
        except BrokenPipeError:
            raise CallFailed(self._explain_end()) from None

    def _receive(self) -> bytes:
        if not (chunk := os.read(self._out, PIPE_CHUNK)):
            raise CallFailed(self._explain_end())
        return chunk

    def _explain_end(self) -> str:
        """Its end of the pipe is closed: the process has ended, or is about to."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its process's pipes"
        if code < 0:
            return f"ended its process, which was killed by {signal.Signals(-code).name}"
        return f"ended its process with exit code {code}"

    def stop(self) -> None:
        """Kill the process and what it has started, as far as the system lists it."""
        for pid in [*_list_descendants(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._relay.join(1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def _is_complete(received: bytearray) -> bool:
    """A message is its length, then as many bytes."""
    if len(received) < LENGTH.size:
        return False
    [length] = LENGTH.unpack(received[: LENGTH.size])
    return len(received) >= LENGTH.size + length


def build_import_error(knob: str, function: Function, kind: str, *detail: str) -> UserError:
    place, name, typed = function.source, function.name, f"{knob}.function={function}"
    match kind:
        case "absent":
            return UserError(f"{typed}: {place} has no function {name}. {suggest(name, [*detail])}")
        case "async":
            return UserError(
                f"{typed}: it is async, and functions are called one after the other."
                " Give a plain one."
            )
        case _:
            advice = (
                "Give ./file.py:name or package.module.name, and check that it imports by itself."
            )
            return UserError(
                f"{typed}: {place} cannot be imported ({clean_detail(detail[0])}).\n"
                f"  {_explain_neighbour(function, detail[0]) or advice}"
            )


def _explain_neighbour(function: Function, fault: str) -> str | None:
    """Why a file cannot import the one next to it, which would not enter identity."""
    missing = re.search("No module named '([^'.]+)", fault)
    file = function.file and missing and Path(function.file).with_name(f"{missing[1]}.py")
    if not file or not file.expanduser().is_file():
        return None
    return (
        f"{file} is not imported, since a change in it would leave old scores: put both into one"
        " file."
    )


def _relay_output(printed: Any) -> None:
    """Print each line after a `|`, so that none is taken for a line of the stage's."""
    with printed:
        while line := printed.readline(MAX_LINE):
            text = api_client.mask_secrets(line.decode(errors="backslashreplace").rstrip("\n"))
            print("|", make_printable(text, MAX_PRINTED), file=sys.stderr, flush=True)
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = printed.readline(MAX_LINE)


def _list_descendants(pid: int) -> Iterator[int]:
    """Children before their parents, where there is a /proc."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield from _list_descendants(int(child))
                yield int(child)
