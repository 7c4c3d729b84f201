"""Requests to a service: so many in flight, retried by the service's own client alone, faults told without secrets.

The event loop runs only within `ask`: nothing happens behind the asker's back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from pipeline.backends import api_client
from pipeline.config import ServiceRuntime
from pipeline.errors import StageError, UserError, shown
from pipeline.scorers.judging import Hear, Question, Reply

HOPELESS = 50  # requests in a row without a reply, each after all of its retries: the rest would fare no better
SHOWN, LONGEST = 100, 1 << 20  # characters of a model's name, and of what it says
UNFIT = 8  # first requests that the server all calls wrong: so are the others, made like them

Send = Callable[[Question], Awaitable[Reply]]


class Service:
    """`knob` is the engine's own, `library` the client's package (see `served`), `send` is one request."""

    def __init__(
        self, knob: str, runtime: ServiceRuntime, model: str, library: Any, client: Any, send: Send
    ):
        self.knob, self.runtime, self.model = knob, runtime, model
        self.library, self.client, self.send = library, client, send
        self.loop = asyncio.new_event_loop()
        self._silent = self._unfit = 0
        self._answered = self._over = False

    def ask(self, questions: Iterable[Question], hear: Hear) -> None:
        waiting, self._over = iter(questions), False
        lines = [
            self.loop.create_task(self._line(waiting, hear))
            for _ in range(self.runtime.concurrency)
        ]
        try:
            self.loop.run_until_complete(self._ended(lines))
        finally:
            for line in lines:
                line.cancel()
            self.loop.run_until_complete(asyncio.gather(*lines, return_exceptions=True))

    async def _ended(self, lines: list["asyncio.Task[None]"]) -> None:
        """What ends one line ends the step, once what the others have asked is heard: it is paid for."""
        done, under_way = await asyncio.wait(lines, return_when=asyncio.FIRST_EXCEPTION)
        self._over = True
        if under_way:
            await asyncio.wait(under_way, timeout=self.runtime.timeout)
        for line in done:
            line.result()

    async def _line(self, waiting: Iterator[Question], hear: Hear) -> None:
        """Who has heard an answer takes the next question of all at once."""
        while not self._over and (question := next(waiting, None)) is not None:
            hear(question, self._checked(await self._reply(question)))

    def _checked(self, reply: Reply) -> Reply:
        self._silent = self._silent + 1 if reply.text is None else 0
        self._unfit += reply.unfit
        self._answered |= reply.text is not None
        if self._unfit >= UNFIT and not self._answered:
            raise UserError(
                f"{self.model} at {self.runtime.base_url}: the server calls every request wrong (the last:"
                f" {reply.fault}).\n  Look at what they hold: temperature, max_tokens, body and, where it has them,"
                f" probabilities and dialect of {self.knob};\n  {self.knob}.body.NAME=null leaves the field NAME out."
            )
        if self._silent >= HOPELESS:
            raise StageError(
                f"{self.model} at {self.runtime.base_url}: {HOPELESS} requests in a row failed (the last:"
                f" {reply.fault}).\n  All verdicts so far are kept. Run the same command again when the server is well."
            )
        return reply

    async def _reply(self, question: Question) -> Reply:
        """A request's end. What every other request would meet too stops the stage; the rest is one failed verdict."""
        library = self.library
        try:
            return await self.send(question)
        except (library.AuthenticationError, library.PermissionDeniedError) as error:
            # Not from the error itself: it holds request and headers.
            raise api_client.make_key_error(self.knob, self.runtime, error.status_code) from None
        except library.NotFoundError:
            raise UserError(
                f"{self.model} at {self.runtime.base_url}: HTTP 404, there is no such model or address.\n"
                f"  Give another {self.knob}.model, or the {self.knob}.runtime.base_url that its documents name"
                " (most end in /v1)."
            ) from None
        except library.APIError as error:
            unfit = isinstance(error, library.BadRequestError | library.UnprocessableEntityError)
            return Reply(
                None, fault=api_client.describe_error(library, self.runtime, error), unfit=unfit
            )
        except Exception as error:  # whatever a reply does to the client or to us, it is the fault of this one alone
            return Reply(None, fault=f"the server's reply cannot be read ({type(error).__name__})")

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def named(body: dict[str, Any]) -> str:
    """The model as the server names itself."""
    return shown(str(body.get("model") or ""), SHOWN)


def unfit_text(text: str) -> str:
    """Why what a judge said cannot be kept, if so."""
    if len(text) > LONGEST:
        return f"the reply has {len(text)} characters, and at most {LONGEST} are read"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the reply holds half of a surrogate pair, which is no character"
    return ""
