"""Requests to a service: so many in flight, retried by the service's own client alone, faults told without secrets.

The event loop runs only while somebody waits for a reply; between two replies nothing happens behind their back.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from pipeline.config import ServiceRuntime
from pipeline.errors import Broken, Refusal
from pipeline.scorers.judging import Question, Reply

HOPELESS = 50  # requests in a row without a reply, each after all of its retries: the rest would fare no better
SHOWN = 200

Send = Callable[[Question], Awaitable[Reply]]


class Service:
    """`library` is the client's package, whose errors are told apart by their names; `send` is one request."""

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
        try:
            return await self.send(question)
        except (
            self.library.AuthenticationError,
            self.library.PermissionDeniedError,
            self.library.NotFoundError,
        ) as error:
            raise self._refusal(error.status_code) from None  # the error itself holds request and headers
        except self.library.APITimeoutError:
            return Reply(None, fault=f"no reply within {self.runtime.timeout:g} seconds")
        except self.library.APIConnectionError as error:
            return Reply(None, fault=f"{self.runtime.base_url} cannot be reached ({type(error.__cause__).__name__})")
        except self.library.APIStatusError as error:
            said = str(error.message).removeprefix(f"Error code: {error.status_code} - ")
            why = f": {without_key(said, self.runtime)[:SHOWN]}" if error.status_code < 429 else ""
            return Reply(None, fault=f"HTTP {error.status_code}{why}")
        except self.library.APIError as error:
            return Reply(None, fault=f"the reply is no {self.library.__name__} reply ({type(error).__name__})")

    def _refusal(self, status: int) -> Refusal:
        where = f"{self.model} at {self.runtime.base_url}: HTTP {status}"
        if status == 404:
            return Refusal(
                f"{where}, there is no such model or address.\n"
                "  Give another engine.model, or the engine.runtime.base_url that its documents name (most end in /v1)."
            )
        variable = self.runtime.api_key_env
        held = f"the key in {variable}" if variable else "a request without a key (engine.runtime.api_key_env=null)"
        return Refusal(
            f"{where}, the server does not accept {held}.\n"
            f"  Set {variable or 'api_key_env to the name of a variable'} to a key that may use this model,"
            " and run the same command again."
        )

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def key_of(runtime: ServiceRuntime) -> str:
    """The key, straight from the environment: it is never part of a config."""
    if runtime.api_key_env is None:
        return "none"
    if key := os.environ.get(runtime.api_key_env, "").strip():
        return key
    raise Refusal(
        f"engine.runtime.api_key_env: the environment variable {runtime.api_key_env} is not set.\n"
        f"  Type `export {runtime.api_key_env}=…` first, or give api_key_env=null for a server that wants no key."
    )


def without_key(text: str, runtime: ServiceRuntime) -> str:
    key = os.environ.get(runtime.api_key_env or "", "").strip()
    return text.replace(key, "[the key]") if key else text


def count(usage: Any, name: str) -> int:
    """A figure of a reply's usage; 0 where the server keeps none."""
    value = usage.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
