"""A pool of worker processes over one queue of shards, each with its own GPUs.

A worker runs one function once, so it opens its engine once, and claims shards until none is left.
A crashed worker's shards are queued again; the run fails when the last worker has crashed.
With a single worker the stage's own process does the work. Where a process builds several Steps,
the workers stay with their models open, and the next Step's function runs in them.
Processes of other machines take shards of the same queue (see `shard_queue`).
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from pipeline import hardware
from pipeline.artifacts import DEVICES_FILE
from pipeline.errors import FAILED, StageError, UserError, pluralize
from pipeline.hashing import hash_code
from pipeline.progress import print_note, print_progress
from pipeline.resources import open_models
from pipeline.resources.gpu_sets import Environment
from pipeline.resources.shard_queue import OwnQueue

Figures = dict[str, float]
GRACE = 10.0  # seconds for an idle worker to close its model
OTHERS_PAUSE = 1.0  # seconds between two looks at the shards of other machines
LAST_PAUSE = 0.2  # the same, where nothing else is left
LAST_LINES = 12  # lines of a crashed worker's log that the error shows


class Worker(Protocol):
    def claim(self, wait: bool = True) -> str | None:
        """The next shard, which now belongs to this worker.

        None: all shards are finished. Without `wait` None means that no shard is free now.
        """
        ...

    def output(self, shard: str, file: Path) -> Path:
        """Where to write a file of this shard that belongs at `file`."""
        ...

    def finish(self, shard: str, entry: Any = None) -> None:
        """This shard's file is written. `entry` is what the list of finished shards records."""
        ...

    def report(self, **figures: float) -> None:
        """Figures of progress for the person who watches."""
        ...


Work = Callable[[Worker], None]
OnFinish = Callable[[str, Any], None]  # a shard and its entry
OnReport = Callable[[Figures], None]


def _ignore(*_: Any) -> None:
    pass


def run_shards(
    shards: list[str],
    work: Work,
    environments: list[Environment],
    out: Path,
    on_finish: OnFinish = _ignore,
    on_report: OnReport = _ignore,
    may_join: bool = True,
) -> None:
    """Process every shard of the step in `out`, with one worker per environment.

    `may_join`: whether other machines may take some.

    `on_finish` and `on_report` are called in this process, by one thread. With several workers
    `work` must pickle: `partial(a_module_level_function, arguments)`.
    """
    if not shards:
        return
    about = {"code": hash_code()} if may_join else None
    queue = StageQueue(out, shards, on_finish, on_report, about)
    try:
        if len(environments) == 1:
            work(InProcess(queue))
        else:
            logs = out / "scratch" / "workers"
            WorkerPool(queue).run(work, environments[: len(shards)], logs)
    finally:
        queue.close()


class StageQueue(OwnQueue):
    """The stage's shards, and what to call when one is finished, here or elsewhere."""

    def __init__(
        self,
        out: Path,
        shards: list[str],
        on_finish: OnFinish,
        on_report: OnReport,
        about: dict[str, Any] | None = None,
    ):
        super().__init__(out, shards, about)
        self.out = out
        self._on_finish, self.report = on_finish, on_report
        self._looked_at = time.monotonic()

    def finish_ours(self, shard: str, entry: Any) -> None:
        self._on_finish(shard, entry)
        self.finish(shard)

    def look_at_others(self, every: float = OTHERS_PAUSE) -> None:
        """Take in what other processes have finished, at most once in `every` seconds."""
        if time.monotonic() - self._looked_at < every:
            return
        self._looked_at = time.monotonic()
        for shard, result in self.collect():
            self._note_device(shard, result.get("device", self._own_device))
            self.report(result["figures"])
            self._on_finish(shard, result["entry"])

    def _note_device(self, shard: str, device: str) -> None:
        if hardware.name_kind(device) != hardware.name_kind(self._own_device):
            with (self.out / DEVICES_FILE).open("a") as file:
                file.write(json.dumps({"shard": shard, "device": device}) + "\n")

    @cached_property
    def _own_device(self) -> str:
        return hardware.describe_device()


class InProcess:
    """The only worker of a stage: the stage's own process."""

    def __init__(self, queue: StageQueue):
        self._queue, self._claimed = queue, 0

    def claim(self, wait: bool = True) -> str | None:
        """Where none is free, wait for the shards of other processes."""
        self._queue.look_at_others()
        shard, shown = self._queue.take(), 0
        while shard is None and wait and not self._claimed and self._queue.is_left():
            if (others := self._queue.count_others()) != shown:
                print_progress(f"waiting for {pluralize(others, 'shard')} of others")
                shown = others
            time.sleep(LAST_PAUSE)
            self._queue.look_at_others(LAST_PAUSE)
            shard = self._queue.take()
        self._claimed += shard is not None
        return shard

    def output(self, shard: str, file: Path) -> Path:
        return file

    def finish(self, shard: str, entry: Any = None) -> None:
        self._claimed -= 1
        self._queue.finish_ours(shard, entry)

    def report(self, **figures: float) -> None:
        self._queue.report(figures)


class _PipeWorker:
    """A worker as its own process sees it: it talks to the pool through a pipe."""

    def __init__(self, pipe: "Connection[Any, Any]"):
        self._pipe = pipe

    def claim(self, wait: bool = True) -> str | None:
        self._pipe.send(("claim", wait))
        shard: str | None = self._pipe.recv()
        return shard

    def output(self, shard: str, file: Path) -> Path:
        return file

    def finish(self, shard: str, entry: Any = None) -> None:
        self._pipe.send(("finish", shard, entry))

    def report(self, **figures: float) -> None:
        self._pipe.send(("report", figures))


class WorkerProcess:
    """A worker as the pool sees it."""

    def __init__(self, number: int, environment: Environment):
        gpus = environment.get(hardware.VISIBLE)
        self.name = f"worker {number} (GPU {gpus})" if gpus else f"worker {number}"
        self.number, self.environment = number, environment
        self.log: Path
        self.claimed: list[str] = []
        self.is_waiting = False
        self.pipe, theirs = get_context("spawn").Pipe()
        # Not a daemon: a daemon may have no children, and an engine on a GPU starts some.
        self.process = get_context("spawn").Process(
            target=_run_worker, args=(environment, theirs, open_models.are_kept())
        )
        self.process.start()
        theirs.close()

    def assign(self, work: Work, logs: Path) -> None:
        self.log = logs / f"worker-{self.number}.log"
        with suppress(BrokenPipeError, ConnectionResetError):  # `_receive` notices its end
            self.pipe.send((work, self.log))

    def end(self) -> None:
        """An idle one closes its model first."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(None)
        self.process.join(GRACE)
        self.stop()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    @property
    def exit_cause(self) -> str:
        code = self.process.exitcode or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def read_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class WorkerPool:
    def __init__(self, queue: StageQueue):
        self.queue = queue
        self.workers: list[WorkerProcess] = []
        self._last_crashed: WorkerProcess

    def run(self, work: Work, environments: list[Environment], logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        key = "workers", environments[0]
        started: list[WorkerProcess] = open_models.borrow(key, list)
        try:
            for number, environment in enumerate(environments):
                if number == len(started):
                    started.append(WorkerProcess(number, environment))
                started[number].assign(work, logs)
            self.workers = started[: len(environments)]
            while self.workers:
                self._receive()
        except BaseException:
            for worker in started:
                worker.stop()
            raise
        finally:
            for worker in started[: len(environments)]:
                _print(worker.read_log())
        if all(worker.process.is_alive() for worker in started):
            open_models.park(key, started, partial(_end_all, started))
        else:
            _end_all(started)
        if to_do := self.queue.list_unfinished():
            last = self._last_crashed
            lines = "\n".join(f"    {line}" for line in last.read_log().splitlines()[-LAST_LINES:])
            raise StageError(
                f"none of {pluralize(len(started), 'worker')} is left, and"
                f" {pluralize(len(to_do), 'shard')} still to do ({to_do[0]} …).\n"
                f"  The last one {last.exit_cause}. Its last lines:\n{lines}"
            )

    def _receive(self) -> None:
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(by_pipe), OTHERS_PAUSE):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):  # the process has ended, perhaps in the middle of a message
                self._remove(worker)
            else:
                self._handle(worker, *message)
        self.queue.look_at_others()
        self._serve_waiting()

    def _handle(self, worker: WorkerProcess, kind: str, *content: Any) -> None:
        match (kind, content):
            case ("claim", (True,)):
                worker.is_waiting = True
            case ("claim", _):
                self._send_shard(worker, self.queue.take())
            case ("finish", (shard, entry)):
                worker.claimed.remove(shard)
                self.queue.finish_ours(shard, entry)
            case ("report", (figures,)):
                self.queue.report(figures)
            case ("fault", (fault,)):
                raise fault
            case ("done", ()):
                self.workers.remove(worker)

    def _serve_waiting(self) -> None:
        """Send waiting workers a shard; or home, when no worker holds one that might come back."""
        for worker in self.workers:
            if not worker.is_waiting:
                continue
            shard = self.queue.take()
            may_come_back = self.queue.is_left() or any(other.claimed for other in self.workers)
            if shard is not None or not may_come_back:
                self._send_shard(worker, shard)

    def _send_shard(self, worker: WorkerProcess, shard: str | None) -> None:
        worker.is_waiting = False
        if shard is not None:
            worker.claimed.append(shard)
        try:
            worker.pipe.send(shard)
        except (BrokenPipeError, ConnectionResetError):
            return  # _receive notices its end next, and queues the shard again

    def _remove(self, worker: WorkerProcess) -> None:
        worker.process.join()
        self.workers.remove(worker)
        self.queue.give_back(worker.claimed)
        if worker.process.exitcode or worker.claimed:
            self._last_crashed = worker
            shards = pluralize(len(worker.claimed), "shard")
            print_note(f"{worker.name} {worker.exit_cause} and gives back {shards}.")
        worker.claimed = []


def _end_all(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.end()


def _run_worker(environment: Environment, pipe: "Connection[Any, Any]", keeps: bool) -> None:
    """Runs in the worker's process. Its output goes to a log, which the pool prints at the end."""
    os.environ.update(environment)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if keeps:
        open_models.keep_between_steps()
    while (assigned := pipe.recv()) is not None:
        work, log = assigned
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        try:
            work(_PipeWorker(pipe))
        except (UserError, StageError) as fault:
            pipe.send(("fault", fault))
            sys.exit(FAILED)
        pipe.send(("done",))
    open_models.close_parked()


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(FAILED)


def _print(text: str) -> None:
    if text:
        print(text.rstrip("\n"), file=sys.stderr, flush=True)
