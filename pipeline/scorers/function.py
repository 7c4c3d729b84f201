"""A user's own function in the shape of TRL's reward functions: what scores here also rewards there.

It is called once per prompt, as TRL calls it: `prompts` and `completions` are lists of lists of messages, every column
of the prompt is a list of the same length. It returns a number for each; None means that it has no opinion.

It runs in a process of its own (`function_harness`), since nothing else ends one that hangs: a call that takes longer
than `runtime.timeout`, or that ends the process, costs the answers of its prompt. What it prints goes to the log of the
step, without the keys that the environment holds.
"""

import json
import os
import pickle
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
from pipeline.errors import UserError, many, nearest, shown
from pipeline.scorers import Answer, Score
from pipeline.scorers.function_harness import LENGTH

HARNESS = Path(__file__).with_name("function_harness.py")
HOPELESS = 3  # calls in a row that hang or end the process: the others would fare no better
LINE, PRINTED = (
    1 << 20,
    2000,
)  # bytes of a printed line that are read, characters of it that are kept
PIECE = 1 << 16


class UserFunction:
    def __init__(self, cfg: FunctionScorer, knob: str = "score.scorers.NAME"):
        self.cfg, self.knob = cfg, knob
        self._process: FunctionProcess | None = None
        self._lost = 0  # calls in a row

    def mark(self, answers: list[Answer]) -> Iterator[Score]:
        for _, candidates in groupby(answers, key=lambda answer: answer.prompt_id):
            yield from self._marks(list(candidates))

    def close(self) -> None:
        if self._process:
            self._process.end()
            self._process = None

    def _marks(self, answers: list[Answer]) -> Iterator[Score]:
        self._process = self._process or self._started()
        try:
            told = self._process.ask(arguments(answers), self.cfg.runtime.timeout)
            self._lost = 0
        except Lost as lost:
            self.close()
            self._check_hope(lost)
            told = {"fault": f"the function {lost}"}
        if "scores" in told:
            yield from (
                marked(answer, *score)
                for answer, score in zip(answers, told["scores"], strict=True)
            )
            return
        given = f"the function gave {many(told.get('count', 0), 'score')} for {many(len(answers), 'completion')}"
        fault = kept(told.get("fault", given))  # it costs its rows, not the run; they are counted
        yield from (Score(answer.sample_id, None, detail=fault) for answer in answers)

    def _check_hope(self, lost: "Lost") -> None:
        self._lost += 1
        if self._lost >= HOPELESS:
            raise UserError(
                f"{self.knob}.function={self.cfg.function}: {HOPELESS} calls in a row failed: it {lost}.\n"
                f"  Mend it, or raise {self.knob}.runtime.timeout={self.cfg.runtime.timeout:g}, and run the same"
                " command again: shards that are done are kept."
            ) from None

    def _started(self) -> "FunctionProcess":
        process = FunctionProcess()
        try:
            process.load(self.cfg.function, self.cfg.runtime.timeout, self.knob)
        except Lost as lost:
            process.end()
            raise UserError(
                f"{self.knob}.function={self.cfg.function}: to import {self.cfg.function.place} {lost}.\n"
                f"  See that it imports by itself, or raise {self.knob}.runtime.timeout."
            ) from None
        except BaseException:
            process.end()
            raise
        return process


def marked(answer: Answer, score: float | None, detail: str) -> Score:
    if score is None and not detail:
        return Score(answer.sample_id, None, detail="the function has no opinion", abstained=True)
    return Score(answer.sample_id, score, detail=kept(detail))


def kept(detail: str) -> str:
    """Masked before it is cut, so that no half of a key is left."""
    return shown(api_client.mask_secrets(detail))


def arguments(answers: list[Answer]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for answer in answers for name in answer.columns)
    return {
        "prompts": [answer.prompt for answer in answers],
        "completions": [
            [{"role": "assistant", "content": answer.completion}] for answer in answers
        ],
        **{name: [answer.columns.get(name) for answer in answers] for name in names},
    }


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────


class Lost(Exception):
    """A call without an answer: it took too long, or the process is gone."""


class FunctionProcess:
    """It stays in our process group, and so ends with the stage; what it prints is repeated by a thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(HARNESS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._printed = threading.Thread(target=_repeat, args=[self._process.stderr], daemon=True)
        self._printed.start()

    def load(self, function: Function, patience: float, knob: str) -> None:
        place = str(Path(function.place).expanduser()) if function.file else function.place
        told = {
            "path": sys.path,
            "place": place,
            "file": bool(function.file),
            "name": function.name,
        }
        answer = self.ask(told, patience)
        if "fault" in answer:
            raise refused(knob, function, *json.loads(answer["fault"]))

    def ask(self, message: Any, patience: float) -> dict[str, Any]:
        """Send it and wait for the answer, both within `patience` seconds."""
        data = pickle.dumps(message)
        unsent, came = memoryview(LENGTH.pack(len(data)) + data), bytearray()
        ends = time.monotonic() + patience
        with selectors.DefaultSelector() as ready:
            ready.register(self._in, selectors.EVENT_WRITE)
            ready.register(self._out, selectors.EVENT_READ)
            while (
                len(came) < LENGTH.size
                or len(came) < LENGTH.size + LENGTH.unpack(came[: LENGTH.size])[0]
            ):
                events = ready.select(left) if (left := ends - time.monotonic()) > 0 else []
                if not events:
                    raise Lost(f"took longer than timeout={patience:g} s")
                for key, _ in events:
                    if key.fd == self._in:
                        unsent = self._sent(unsent)
                        if not unsent:
                            ready.unregister(self._in)
                    else:
                        came += self._received()
        answer: dict[str, Any] = json.loads(came[LENGTH.size :])
        return answer

    def _sent(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._in, unsent[:PIECE]) :]
        except BrokenPipeError:
            raise Lost(self._cause()) from None

    def _received(self) -> bytes:
        if not (piece := os.read(self._out, PIECE)):
            raise Lost(self._cause())
        return piece

    def _cause(self) -> str:
        """Its end of the pipe is closed: it is gone, or all but gone."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its process's pipes"
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        return f"took its process along, which {how}"

    def end(self) -> None:
        """The process and what it has started, as far as the system tells."""
        for pid in [*_descendants(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._printed.join(1)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()


def refused(knob: str, function: Function, kind: str, *detail: str) -> UserError:
    place, name, typed = function.place, function.name, f"{knob}.function={function}"
    match kind:
        case "absent":
            return UserError(f"{typed}: {place} has no function {name}. {nearest(name, [*detail])}")
        case "async":
            return UserError(
                f"{typed}: it is async, and functions are called one after the other. Give a plain one."
            )
        case _:
            return UserError(
                f"{typed}: {place} cannot be imported ({kept(detail[0])}).\n"
                "  Give ./file.py:name or package.module.name, and see that it imports by itself."
            )


def _repeat(printed: Any) -> None:
    """Line by line, begun with a sign of its own: no printed word is taken for one of the stage's."""
    with printed:
        while line := printed.readline(LINE):
            text = api_client.mask_secrets(line.decode(errors="backslashreplace").rstrip("\n"))
            print("|", shown(text, PRINTED), file=sys.stderr, flush=True)
            while len(line) == LINE and not line.endswith(b"\n"):
                line = printed.readline(LINE)


def _descendants(pid: int) -> Iterator[int]:
    """Children before their parents, where there is a /proc."""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield from _descendants(int(child))
                yield int(child)
