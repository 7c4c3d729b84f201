"""Requests to a service: so many in flight, retried by the service's own client alone, faults told without secrets.

The event loop runs only while somebody waits for a reply; between two replies nothing happens behind their back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from pipeline import served
from pipeline.config import ServiceRuntime
from pipeline.errors import Broken, Refusal
from pipeline.scorers.judging import Question, Reply

HOPELESS = 50  # requests in a row without a reply, each after all of its retries: the rest would fare no better
KNOB = "engine"

Send = Callable[[Question], Awaitable[Reply]]


class Service:
    """`library` is the client's package (see `served`), `send` is one request."""

    def __init__(self, runtime: ServiceRuntime, model: str, library: Any, client: Any, send: Send):
        self.runtime, self.model = runtime, model
        self.library, self.client, self.send = library, client, send
        self.loop = asyncio.new_event_loop()
        self._silent = 0

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
        waiting, in_flight = iter(questions), dict[asyncio.Task[Reply], Question]()
        try:
            while True:
                while len(in_flight) < self.runtime.concurrency and (question := next(waiting, None)):
                    in_flight[self.loop.create_task(self._reply(question))] = question
                if not in_flight:
                    return
                done, _ = self.loop.run_until_complete(asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED))
                for task in sorted(done, key=lambda task: task.exception() is not None):  # what is paid for comes first
                    yield in_flight.pop(task), self._heard(task.result())
        finally:
            self._give_up(in_flight)

    def _heard(self, reply: Reply) -> Reply:
        self._silent = self._silent + 1 if reply.text is None else 0
        if self._silent >= HOPELESS:
            raise Broken(
                f"{self.model} at {self.runtime.base_url}: {HOPELESS} requests in a row failed (the last:"
                f" {reply.fault}).\n  All verdicts so far are kept. Run the same command again when the server is well."
            )
        return reply

    def _give_up(self, in_flight: Iterable["asyncio.Task[Reply]"]) -> None:
        tasks = list(in_flight)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _reply(self, question: Question) -> Reply:
        """A request's end. What every other request would meet too stops the stage; the rest is one failed verdict."""
        library = self.library
        try:
            return await self.send(question)
        except (library.AuthenticationError, library.PermissionDeniedError) as error:
            # Not from the error itself: it holds request and headers.
            raise served.unaccepted(KNOB, self.runtime, error.status_code) from None
        except library.NotFoundError:
            raise Refusal(
                f"{self.model} at {self.runtime.base_url}: HTTP 404, there is no such model or address.\n"
                "  Give another engine.model, or the engine.runtime.base_url that its documents name (most end in /v1)."
            ) from None
        except library.APIError as error:
            return Reply(None, fault=served.fault(library, self.runtime, error))

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def count(usage: Any, name: str) -> int:
    """A figure of a reply's usage; 0 where the server keeps none."""
    value = usage.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
