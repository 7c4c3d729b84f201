"""The batch interfaces of OpenAI and Anthropic: submit requests, ask for their state, read results.

The name of a request there (`custom_id`) is the key of its verdict.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pipeline import progress
from pipeline.backends import api_client
from pipeline.config import AnthropicEngine, EndpointEngine
from pipeline.errors import StageError, UserError, WorkPending
from pipeline.scorers.judging import JudgeRequest, Response, anthropic, endpoint
from pipeline.scorers.judging.batch_journal import BatchEntry

CHAT = "/v1/chat/completions"
LABEL = "strop"  # the field of OpenAI's metadata that holds our token
PAGE = 100  # batches in one list
CLOCK_SKEW = 300  # seconds by which the service's clock may differ from ours
SERVER_FAULT = 500  # a status from here on, or 429, says nothing about the request itself
BUSY = 429
# Anthropic's errors of a request that is wrong whenever it is sent; all others may pass.
FINAL_ERRORS = {"invalid_request_error", "request_too_large", "not_found_error"}

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """`fault`: why the service refused the whole batch."""

    id: str
    is_ended: bool
    answered: int
    files: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `is_open`: it was not answered and may be sent again."""

    key: str
    response: Response
    is_open: bool = False


class BatchService(ABC):
    """`knob` is the engine's own, `library` the client's package."""

    def __init__(self, cfg: EndpointEngine | AnthropicEngine, knob: str, library: Any, client: Any):
        self.model, self.runtime, self.knob = cfg.model, cfg.runtime, knob
        self.library, self.client = library, client
        self.loop = asyncio.new_event_loop()

    @abstractmethod
    def submit(self, token: str, requests: Mapping[str, JudgeRequest]) -> str:
        """The batch's id. A UserError means that the service made none."""

    @abstractmethod
    def find_batch(self, batch: BatchEntry, known: set[str]) -> str | None:
        """The id of a batch that was submitted by a process that ended before it was named."""

    @abstractmethod
    def fetch_status(self, batch_id: str) -> BatchStatus: ...

    @abstractmethod
    def read_outcomes(self, status: BatchStatus) -> Iterator[Outcome]: ...

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()

    def _get(self, path: str, batch_id: str = "") -> str:
        return self._wait_for(self.client.get(path, cast_to=str), batch_id)

    def _get_object(self, path: str, batch_id: str = "") -> dict[str, Any]:
        return self._parse_object(self._get(path, batch_id))

    def _post(self, path: str, body: dict[str, Any]) -> str:
        """The id of a new batch. Sent once: a second try could make a second batch."""
        options = {"max_retries": 0}
        call = self.client.post(path, body=body, cast_to=str, options=options)
        made = self._parse_object(self._wait_for(call))
        if not isinstance(made.get("id"), str):
            raise self._make_fault("its reply names no batch")
        return str(made["id"])

    def _parse_object(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._make_fault("its reply is not a JSON object")
        return value

    def _wait_for(self, call: Awaitable[Result], batch_id: str = "") -> Result:
        library, place = self.library, f"{self.knob}.runtime.base_url={self.runtime.base_url}"
        try:
            with progress.measure_phase(progress.WAIT):
                return self.loop.run_until_complete(asyncio.ensure_future(call, loop=self.loop))
        except (library.AuthenticationError, library.PermissionDeniedError) as error:
            raise api_client.make_key_error(self.knob, self.runtime, error.status_code) from None
        except library.NotFoundError:
            if batch_id:
                raise UserError(
                    f"{place}: this account has no batch {batch_id}, in which verdicts of this"
                    f" store wait. Another account submitted it, or it was deleted.\n"
                    f"  Set {self.runtime.api_key_env} to that account's key and run the same"
                    " command again,\n"
                    f"  or give {self.knob}.batch=false, which asks at once and pays for them anew."
                ) from None
            raise UserError(
                f"{place}: HTTP 404, this server has no batches.\n"
                f"  Give {self.knob}.batch=false, or the address of a service that has them."
            ) from None
        except (library.BadRequestError, library.UnprocessableEntityError) as error:
            fault = api_client.describe_error(library, self.runtime, error)
            raise UserError(
                f"{place}: it refuses the batch ({fault}).\n"
                f"  Correct {self.knob}, or give {self.knob}.batch=false."
            ) from None
        except library.APIError as error:
            fault = api_client.describe_error(library, self.runtime, error)
            raise self._make_fault(fault) from None

    def _make_fault(self, fault: str) -> StageError:
        return StageError(
            f"{self.model} at {self.runtime.base_url}: {fault}.\n"
            "  What was submitted is kept. Run the same command again."
        )

    def _parse_lines(self, text: str) -> Iterator[dict[str, Any]]:
        for line in text.splitlines():
            if line.strip():
                yield self._parse_object(line)


class OpenAIBatches(BatchService):
    """A file of requests, a batch of it, and a file each of its responses and errors."""

    def __init__(self, cfg: EndpointEngine, form: str, knob: str):
        super().__init__(cfg, knob, *endpoint.open_client(cfg, knob))
        self.cfg, self.form = cfg, form

    def submit(self, token: str, requests: Mapping[str, JudgeRequest]) -> str:
        lines = [
            json.dumps(
                {
                    "custom_id": key,
                    "method": "POST",
                    "url": CHAT,
                    "body": endpoint.build_body(self.cfg, self.form, request),
                }
            )
            for key, request in requests.items()
        ]
        data = "".join(f"{line}\n" for line in lines).encode()
        upload = self.client.files.create(file=(f"{token}.jsonl", data), purpose="batch")
        file = self._wait_for(upload)
        body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        return self._post("/batches", {**body, "metadata": {LABEL: token}})

    def find_batch(self, batch: BatchEntry, known: set[str]) -> str | None:
        for entry in self._list_batches(batch.created - CLOCK_SKEW):
            if (entry.get("metadata") or {}).get(LABEL) == batch.token:
                return str(entry["id"])
        return None

    def _list_batches(self, since: float) -> Iterator[dict[str, Any]]:
        """The newest first."""
        path = f"/batches?limit={PAGE}"
        while True:
            page = self._get_object(path)
            entries = page.get("data") or []
            yield from (entry for entry in entries if entry["created_at"] >= since)
            if not page.get("has_more") or not entries or entries[-1]["created_at"] < since:
                return
            path = f"/batches?limit={PAGE}&after={entries[-1]['id']}"

    def fetch_status(self, batch_id: str) -> BatchStatus:
        batch = self._get_object(f"/batches/{batch_id}", batch_id)
        status, counts = batch.get("status"), batch.get("request_counts") or {}
        files = tuple(
            file for name in ("output_file_id", "error_file_id") if (file := batch.get(name))
        )
        faults = (batch.get("errors") or {}).get("data") or []
        fault = str(faults[0].get("message")) if faults else "it names no reason"
        return BatchStatus(
            batch_id,
            status in ("completed", "expired", "cancelled", "failed"),
            api_client.read_usage(counts, "completed"),
            files,
            fault if status == "failed" else "",
        )

    def read_outcomes(self, status: BatchStatus) -> Iterator[Outcome]:
        for file in status.files:
            for line in self._parse_lines(self._get(f"/files/{file}/content", status.id)):
                yield _read_openai_line(line)


def _read_openai_line(line: dict[str, Any]) -> Outcome:
    key, reply, error = str(line.get("custom_id")), line.get("response"), line.get("error")
    code = reply.get("status_code") if isinstance(reply, dict) else None
    if isinstance(reply, dict) and code == 200 and not error:
        return Outcome(key, endpoint.parse_response(json.dumps(reply.get("body"))))
    if isinstance(error, dict):  # it was not sent: the batch expired or was cancelled
        return Outcome(key, Response(None, fault=f"the batch: {error.get('code')}"), True)
    fault = Response(None, fault=f"HTTP {code} in the batch")
    return Outcome(key, fault, not isinstance(code, int) or code == BUSY or code >= SERVER_FAULT)


class AnthropicBatches(BatchService):
    """One request holds the whole batch. It has no field for a token of ours."""

    def __init__(self, cfg: AnthropicEngine, knob: str):
        super().__init__(cfg, knob, *anthropic.open_client(cfg, knob))
        self.cfg = cfg

    def submit(self, token: str, requests: Mapping[str, JudgeRequest]) -> str:
        entries = [
            {"custom_id": key, "params": anthropic.build_body(self.cfg, request)}
            for key, request in requests.items()
        ]
        return self._post("/v1/messages/batches", {"requests": entries})

    def find_batch(self, batch: BatchEntry, known: set[str]) -> str | None:
        """By its results' names, which are there once it has ended: until then it may be this."""
        for entry in self._list_batches(batch.created - CLOCK_SKEW):
            size = sum((entry.get("request_counts") or {}).values())
            if entry["id"] in known or size != len(batch.requests):
                continue
            status = _read_anthropic_status(entry)
            if not status.is_ended:
                raise WorkPending(
                    f"{self.model} at {self.runtime.base_url}: a run ended while it submitted a"
                    f" batch, which may be {status.id}; its results will tell.\n"
                    "  Run the same command again when that batch has ended."
                )
            outcome = next(self.read_outcomes(status), None)
            if outcome and outcome.key in batch.requests:
                return status.id
        return None

    def _list_batches(self, since: float) -> Iterator[dict[str, Any]]:
        """The newest first."""
        path = f"/v1/messages/batches?limit={PAGE}"
        while True:
            page = self._get_object(path)
            entries = page.get("data") or []
            ages = [_read_time(entry) for entry in entries]
            yield from (e for e, created in zip(entries, ages, strict=True) if created >= since)
            if not page.get("has_more") or not entries or ages[-1] < since:
                return
            path = f"/v1/messages/batches?limit={PAGE}&after_id={entries[-1]['id']}"

    def fetch_status(self, batch_id: str) -> BatchStatus:
        return _read_anthropic_status(
            self._get_object(f"/v1/messages/batches/{batch_id}", batch_id)
        )

    def read_outcomes(self, status: BatchStatus) -> Iterator[Outcome]:
        text = self._get(f"/v1/messages/batches/{status.id}/results", status.id)
        yield from map(_read_anthropic_line, self._parse_lines(text))


def _read_time(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["created_at"]).timestamp()


def _read_anthropic_status(entry: dict[str, Any]) -> BatchStatus:
    answered = api_client.read_usage(entry.get("request_counts"), "succeeded")
    return BatchStatus(str(entry["id"]), entry.get("processing_status") == "ended", answered)


def _read_anthropic_line(line: dict[str, Any]) -> Outcome:
    key, result = str(line.get("custom_id")), line.get("result") or {}
    if result.get("type") == "succeeded":
        return Outcome(key, anthropic.parse_response(json.dumps(result.get("message"))))
    error = result.get("error") or {}
    kind = (error.get("error") or error).get("type") or result.get("type")
    return Outcome(key, Response(None, fault=f"the batch: {kind}"), kind not in FINAL_ERRORS)


def open_service(cfg: EndpointEngine | AnthropicEngine, form: str, knob: str) -> BatchService:
    if isinstance(cfg, AnthropicEngine):
        return AnthropicBatches(cfg, knob)
    return OpenAIBatches(cfg, form, knob)
