"""A pool of requests to a server. Its event loop runs only while a completion is awaited."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from pipeline import progress
from pipeline.backends import Completion, CompletionRequest, FailedRequest

SendRequest = Callable[[CompletionRequest], Coroutine[Any, Any, Completion | FailedRequest]]


class RequestPool:
    """`client` exists from `open` to `close`. Without a client, `close` does nothing."""

    def __init__(self, limit: int, timeout: float):
        self.limit, self.timeout = limit, timeout
        self.client: Any = None
        self._tasks: set[asyncio.Task[Completion | FailedRequest]] = set()
        self._loop: asyncio.AbstractEventLoop

    def open(self, client: Any) -> None:
        self.client, self._loop = client, asyncio.new_event_loop()

    def run_requests(
        self, blocks: Iterable[list[CompletionRequest]], send: SendRequest
    ) -> Iterator[Completion | FailedRequest]:
        """Yield results as they arrive, in any order. Take a new request when one has ended."""
        waiting = chain.from_iterable(blocks)
        while True:
            free = self.limit - len(self._tasks)
            self._tasks |= {
                self._loop.create_task(send(request)) for request in islice(waiting, free)
            }
            if not self._tasks:
                return
            done, self._tasks = self.wait(
                asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            )
            failed = any(task.exception() for task in done)
            if self._tasks and failed:  # the other requests in flight are paid for as well
                late, self._tasks = self.wait(asyncio.wait(self._tasks, timeout=self.timeout))
                done |= late
            for task in sorted(done, key=_delivery_order):
                yield task.result()

    def wait(self, work: Awaitable[Any]) -> Any:
        with progress.measure_phase(progress.WAIT):
            return self._loop.run_until_complete(work)

    def close(self) -> None:
        if self.client is not None:
            self.wait(self._cancel_all())
            self._loop.close()
            self.client = None

    async def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()


def _delivery_order(task: "asyncio.Task[Completion | FailedRequest]") -> int:
    """Completions first: they are paid for, and an exception may end the run."""
    if task.exception() is not None:
        return 2
    return isinstance(task.result(), FailedRequest)
