"""Hands that work off one list of shards: processes of this stage, each with GPUs of its own.

A hand runs one function once, so that it opens its engine once, and claims shards until none is left. One that dies
gives back what it had claimed; when the last one dies the run is broken. A single hand is this process itself.
"""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pipeline import hardware
from pipeline.errors import FAILED, StageError, UserError, pluralize
from pipeline.resources.gpu_sets import Environment

Figures = dict[str, float]
LAST_WORDS = 12  # lines of a dead hand's log that are shown


class Hand(Protocol):
    def claim(self, wait: bool = True) -> str | None:
        """The next shard, now this hand's. None: all are done; without `wait`: there is none to claim now."""
        ...

    def finish(self, shard: str, entry: Any = None) -> None:
        """This shard's file is written; `entry` is what its list shall say of it."""
        ...

    def tell(self, **figures: float) -> None:
        """What a person watching wants to know."""
        ...


Work = Callable[[Hand], None]
Finish = Callable[[str, Any], None]  # a shard and its entry
Tell = Callable[[Figures], None]


def _nothing(*_: Any) -> None:
    pass


def work_off(
    shards: list[str],
    work: Work,
    environments: list[Environment],
    logs: Path,
    finish: Finish = _nothing,
    tell: Tell = _nothing,
) -> None:
    """Have every shard done, by one hand per environment. `finish` and `tell` are called here, by one thread alone.

    With several hands `work` must pickle: `partial(a_function_of_a_module, its, arguments)`.
    """
    if not shards:
        return
    if len(environments) == 1:
        work(Alone(shards, finish, tell))
    else:
        _Crew(shards, finish, tell).run(work, environments[: len(shards)], logs)


class Alone:
    """The hand of a stage that works by itself."""

    def __init__(self, shards: list[str], finish: Finish = _nothing, tell: Tell = _nothing):
        self._left = deque(shards)
        self._finish, self._tell = finish, tell

    def claim(self, wait: bool = True) -> str | None:
        return self._left.popleft() if self._left else None

    def finish(self, shard: str, entry: Any = None) -> None:
        self._finish(shard, entry)

    def tell(self, **figures: float) -> None:
        self._tell(figures)


class _Remote:
    """The hand inside a process: it asks the crew through a pipe."""

    def __init__(self, pipe: "Connection[Any, Any]"):
        self._pipe = pipe

    def claim(self, wait: bool = True) -> str | None:
        self._pipe.send(("claim", wait))
        shard: str | None = self._pipe.recv()
        return shard

    def finish(self, shard: str, entry: Any = None) -> None:
        self._pipe.send(("finish", shard, entry))

    def tell(self, **figures: float) -> None:
        self._pipe.send(("tell", figures))


class _Member:
    """One process as its crew sees it."""

    def __init__(self, number: int, work: Work, environment: Environment, logs: Path):
        self.log = logs / f"worker-{number}.log"
        gpus = environment.get(hardware.VISIBLE)
        self.name = f"worker {number} (GPU {gpus})" if gpus else f"worker {number}"
        self.claimed: list[str] = []
        self.waits = False
        self.pipe, theirs = get_context("spawn").Pipe()
        # Not a daemon: those may have no children, and an engine on a GPU is one.
        self.process = get_context("spawn").Process(
            target=_live, args=(work, environment, theirs, self.log)
        )
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    @property
    def cause(self) -> str:
        code = self.process.exitcode or 0
        return (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )

    def last_words(self) -> list[str]:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-LAST_WORDS:]


class _Crew:
    def __init__(self, shards: list[str], finish: Finish, tell: Tell):
        self.left = deque(shards)
        self.members: list[_Member] = []
        self._finish, self._tell = finish, tell
        self._lost: _Member

    def run(self, work: Work, environments: list[Environment], logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        members: list[_Member] = []
        try:
            for number, environment in enumerate(environments):
                members.append(_Member(number, work, environment, logs))
            self.members = list(members)
            while self.members:
                self._listen()
        finally:
            for member in members:
                member.end()
                _say(member.log.read_text(errors="replace") if member.log.exists() else "")
        if self.left:
            raise StageError(
                f"none of {pluralize(len(members), 'worker')} is left, and {pluralize(len(self.left), 'shard')} still to do "
                f"({self.left[0]} …).\n  The last one {self._lost.cause}. Its last lines:\n"
                + "\n".join(f"    {line}" for line in self._lost.last_words())
            )

    def _listen(self) -> None:
        by_pipe = {member.pipe: member for member in self.members}
        for pipe in connection.wait(list(by_pipe)):
            member = by_pipe[pipe]  # type: ignore[index]
            try:
                said = member.pipe.recv()
            except (EOFError, OSError):  # its end, perhaps in the middle of a word
                self._part_with(member)
            else:
                self._hear(member, *said)
        self._serve()

    def _hear(self, member: _Member, kind: str, *said: Any) -> None:
        match kind, said:
            case "claim", (True,):
                member.waits = True
            case "claim", _:
                self._give(member)
            case "finish", (shard, entry):
                member.claimed.remove(shard)
                self._finish(shard, entry)
            case "tell", (figures,):
                self._tell(figures)
            case "fault", (fault,):
                raise fault

    def _serve(self) -> None:
        """Who waits gets what is left, or goes home when nobody holds a shard that might come back."""
        for member in self.members:
            if member.waits and (self.left or not any(other.claimed for other in self.members)):
                self._give(member)

    def _give(self, member: _Member) -> None:
        shard = self.left.popleft() if self.left else None
        member.waits = False
        if shard is not None:
            member.claimed.append(shard)
        try:
            member.pipe.send(shard)
        except (BrokenPipeError, ConnectionResetError):
            return  # its end is heard next, and the shard comes back then

    def _part_with(self, member: _Member) -> None:
        member.process.join()
        self.members.remove(member)
        self.left.extendleft(reversed(member.claimed))
        if member.process.exitcode or member.claimed:
            self._lost = member
            _say(
                f"│ {member.name} {member.cause} and gives back {pluralize(len(member.claimed), 'shard')}."
            )
        member.claimed = []


def _live(work: Work, environment: Environment, pipe: "Connection[Any, Any]", log: Path) -> None:
    """The life of one hand's process. What it says goes to a log of its own, which the crew repeats at the end."""
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        work(_Remote(pipe))
    except (UserError, StageError) as fault:
        pipe.send(("fault", fault))
        sys.exit(FAILED)
    pipe.close()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(FAILED)


def _say(text: str) -> None:
    if text:
        print(text.rstrip("\n"), file=sys.stderr, flush=True)
