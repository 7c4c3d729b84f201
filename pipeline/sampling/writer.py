"""Detokenises and writes in a thread, so that the engine does not wait."""

from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.resources.worker_pool import Worker
from pipeline.sampling.shards import ShardEntry

FillRows = Callable[[], None]
WriteShard = Callable[[], dict[str, ShardEntry]]


@dataclass(frozen=True)
class _Task:
    """`group`: of the shard that it writes; None where it fills rows."""

    running: Future[Any]
    group: str | None = None
    ends_group: bool = False


class ShardWriter:
    """Tasks run one after the other, in the order in which they are added."""

    def __init__(self, worker: Worker, at_once: bool):
        """`at_once`: add a task by running it, because what it writes was paid for."""
        self._worker = worker
        self._executor: Executor = _AtOnce() if at_once else ThreadPoolExecutor(1)
        self._tasks: deque[_Task] = deque()
        # Of groups that have unwritten shards.
        self._entries: defaultdict[str, dict[str, ShardEntry]] = defaultdict(dict)

    def add_rows(self, fill: FillRows) -> None:
        """Some rows of a shard get their columns."""
        self._tasks.append(_Task(self._executor.submit(fill)))

    def add_shard(self, write: WriteShard, group: str, ends_group: bool) -> None:
        """Its rows have all been added. At most one shard waits for the thread."""
        while any(task.group for task in self._tasks):
            self._finish_next()
        self._tasks.append(_Task(self._executor.submit(write), group, ends_group))

    def finish_done(self) -> None:
        """Tell the worker which groups are written, and raise what a task has raised."""
        while self._tasks and self._tasks[0].running.done():
            self._finish_next()

    def finish_all(self) -> None:
        while self._tasks:
            self._finish_next()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _finish_next(self) -> None:
        task = self._tasks.popleft()
        entries = task.running.result()
        if task.group is None:
            return
        self._entries[task.group] |= entries
        if task.ends_group:
            self._worker.finish(task.group, self._entries.pop(task.group))


class _AtOnce(Executor):
    def submit(self, task: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(task(*given, **named))
        return done
