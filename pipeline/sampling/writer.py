"""Detokenises and writes in a thread, so that the engine does not wait."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from pipeline.resources.worker_pool import Worker
from pipeline.sampling.shards import ShardEntry

FillRows = Callable[[], None]
WriteGroup = Callable[[], dict[str, ShardEntry]]


class ShardWriter:
    """Tasks run one after the other, in the order in which they are added."""

    def __init__(self, worker: Worker, at_once: bool):
        """`at_once`: add a task by running it, because what it writes was paid for."""
        self._worker = worker
        self._executor: Executor = _AtOnce() if at_once else ThreadPoolExecutor(1)
        self._tasks: deque[tuple[str | None, Future[Any]]] = deque()

    def add_rows(self, fill: FillRows) -> None:
        """Some rows of a group of shards get their columns."""
        self._tasks.append((None, self._executor.submit(fill)))

    def add_group(self, group: str, write: WriteGroup) -> None:
        """Its rows have all been added. At most one group waits for the thread."""
        while any(waiting for waiting, _ in self._tasks):
            self._finish_next()
        self._tasks.append((group, self._executor.submit(write)))

    def finish_done(self) -> None:
        """Tell the worker which groups are written, and raise what a task has raised."""
        while self._tasks and self._tasks[0][1].done():
            self._finish_next()

    def finish_all(self) -> None:
        while self._tasks:
            self._finish_next()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _finish_next(self) -> None:
        group, task = self._tasks.popleft()
        entries = task.result()
        if group is not None:
            self._worker.finish(group, entries)


class _AtOnce(Executor):
    def submit(self, task: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(task(*given, **named))
        return done
