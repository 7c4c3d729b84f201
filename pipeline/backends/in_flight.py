"""Requests to a server, so many under way at a time; its event loop runs only while a completion is waited for."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from pipeline.backends import Completion, Failed, Request

Ask = Callable[[Request], Coroutine[Any, Any, Completion | Failed]]


class RequestPool:
    """`client` is there from `open` to `close`; without one, `close` has nothing to do."""

    def __init__(self, most: int, timeout: float):
        self.most, self.timeout = most, timeout
        self.client: Any = None
        self._tasks: set[asyncio.Task[Completion | Failed]] = set()
        self._loop: asyncio.AbstractEventLoop

    def open(self, client: Any) -> None:
        self.client, self._loop = client, asyncio.new_event_loop()

    def answers(self, blocks: Iterable[list[Request]], ask: Ask) -> Iterator[Completion | Failed]:
        """As they come, in any order; the next request is taken when one of those under way has ended."""
        waiting = chain.from_iterable(blocks)
        while True:
            free = self.most - len(self._tasks)
            self._tasks |= {
                self._loop.create_task(ask(request)) for request in islice(waiting, free)
            }
            if not self._tasks:
                return
            done, self._tasks = self.wait(
                asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            )
            if self._tasks and any(
                task.exception() for task in done
            ):  # what else is under way is paid for as well
                late, self._tasks = self.wait(asyncio.wait(self._tasks, timeout=self.timeout))
                done |= late
            for task in sorted(done, key=_what_came_first):
                yield task.result()

    def wait(self, work: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        if self.client is not None:
            self.wait(self._end())
            self._loop.close()
            self.client = None

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()


def _what_came_first(task: "asyncio.Task[Completion | Failed]") -> int:
    """A failure may end the run; what came beside it is paid for and is handed on before."""
    if task.exception() is not None:
        return 2
    return isinstance(task.result(), Failed)
