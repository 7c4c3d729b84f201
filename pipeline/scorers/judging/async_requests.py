"""Requests to a service, a fixed number in flight; its own client alone retries.

Faults repeat no secrets. The event loop runs only within `send_requests`: nothing happens between
two calls.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from pipeline import progress
from pipeline.backends import api_client
from pipeline.config import ServiceRuntime
from pipeline.errors import StageError, UserError, make_printable
from pipeline.scorers.judging import JudgeRequest, OnResponse, Response

# Requests in a row without a response, each after all of its retries: the rest would fail as well.
MAX_FAILURES_IN_A_ROW = 50
# Rejected requests before any response: the others are built alike and would be rejected as well.
MAX_FIRST_REJECTIONS = 8
MAX_NAME_LENGTH, MAX_RESPONSE_LENGTH = 100, 1 << 20  # characters

Send = Callable[[JudgeRequest], Awaitable[Response]]


class ServiceEngine:
    """`knob` is the engine's own, `library` the client's package, `send` sends one request."""

    def __init__(
        self, knob: str, runtime: ServiceRuntime, model: str, library: Any, client: Any, send: Send
    ):
        self.knob, self.runtime, self.model = knob, runtime, model
        self.library, self.client, self.send = library, client, send
        self.loop = asyncio.new_event_loop()
        self._failures_in_a_row = self._rejections = 0
        self._has_response = self._is_stopping = False

    def send_requests(self, requests: Iterable[JudgeRequest], on_response: OnResponse) -> None:
        waiting, self._is_stopping = iter(requests), False
        tasks = [
            self.loop.create_task(self._send_from(waiting, on_response))
            for _ in range(self.runtime.concurrency)
        ]
        try:
            with progress.measure_phase(progress.WAIT):
                self.loop.run_until_complete(self._wait_for(tasks))
        finally:
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _wait_for(self, tasks: list["asyncio.Task[None]"]) -> None:
        """An exception in one task ends the step.

        The other tasks' requests are paid for, so their responses are awaited first.
        """
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        self._is_stopping = True
        if pending:
            await asyncio.wait(pending, timeout=self.runtime.timeout)
        for task in done:
            task.result()

    async def _send_from(self, waiting: Iterator[JudgeRequest], on_response: OnResponse) -> None:
        """Each task takes the next request as soon as it has its response."""
        while not self._is_stopping and (request := next(waiting, None)) is not None:
            on_response(request, self._check_response(await self._send_one(request)))

    def _check_response(self, response: Response) -> Response:
        self._failures_in_a_row = self._failures_in_a_row + 1 if response.text is None else 0
        self._rejections += response.is_rejected
        self._has_response |= response.text is not None
        service = f"{self.model} at {self.runtime.base_url}"
        if self._rejections >= MAX_FIRST_REJECTIONS and not self._has_response:
            raise UserError(
                f"{service}: the server calls every request wrong (the last: {response.fault}).\n"
                "  Check what the requests hold: temperature, max_tokens, body and, where it has"
                f" them, probabilities and dialect of {self.knob};\n"
                f"  {self.knob}.body.NAME=null leaves the field NAME out."
            )
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise StageError(
                f"{service}: {MAX_FAILURES_IN_A_ROW} requests in a row failed"
                f" (the last: {response.fault}).\n  All verdicts so far are kept."
                " Run the same command again when the server works."
            )
        return response

    async def _send_one(self, request: JudgeRequest) -> Response:
        """The response to a request.

        A fault that every request would meet ends the stage; any other fails this one.
        """
        library = self.library
        try:
            return await self.send(request)
        except (library.AuthenticationError, library.PermissionDeniedError) as error:
            # The error itself holds the request and its headers: use its status code alone.
            raise api_client.make_key_error(self.knob, self.runtime, error.status_code) from None
        except library.NotFoundError:
            raise UserError(
                f"{self.model} at {self.runtime.base_url}: HTTP 404, no such model or address.\n"
                f"  Give another {self.knob}.model, or the {self.knob}.runtime.base_url that the"
                " service documents (most end in /v1)."
            ) from None
        except library.APIError as error:
            is_rejected = isinstance(
                error, library.BadRequestError | library.UnprocessableEntityError
            )
            fault = api_client.describe_error(library, self.runtime, error)
            return Response(None, fault=fault, is_rejected=is_rejected)
        except (
            Exception
        ) as error:  # whatever a response does to the client or to us, it fails alone
            fault = f"the server's reply cannot be read ({type(error).__name__})"
            return Response(None, fault=fault)

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def read_model_name(body: dict[str, Any]) -> str:
    """The model as the server names itself."""
    return make_printable(str(body.get("model") or ""), MAX_NAME_LENGTH)


def find_text_fault(text: str) -> str:
    """Why a response's text cannot be kept, if so."""
    if len(text) > MAX_RESPONSE_LENGTH:
        return f"the reply has {len(text)} characters, and at most {MAX_RESPONSE_LENGTH} are read"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the reply holds half of a surrogate pair, which is not a character"
    return ""
