"""A W&B server on this machine: it answers what the installed client asks of one, and keeps what it
was sent."""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"
COUNTED = {
    "historyLineCount": HISTORY,
    "eventsLineCount": "wandb-events.jsonl",
    "logLineCount": "output.log",
}
SAID = {
    401: "user is not logged in",
    403: "permission denied",
    404: "entity not found",
    500: "out of order",
}


@dataclass
class Sent:
    """One run as its page would show it."""

    told: dict[str, Any] = field(default_factory=dict)  # the last word on each thing
    streams: dict[str, list[str]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        return {
            name: of["value"]
            for name, of in json.loads(self.told["config"]).items()
            if name != "_wandb"
        }

    @property
    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        """Each step with what was shown at it, without the client's own clock."""
        rows = [json.loads(line) for line in self.streams.get(HISTORY, [])]
        return [(row["_step"], {name: row[name] for name in row if name[0] != "_"}) for row in rows]

    def take(self, body: dict[str, Any]) -> None:
        for file, part in body.get("files", {}).items():
            lines = self.streams.setdefault(file, [])
            lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
        if body.get("complete"):
            self.exit_codes.append(body["exitcode"])


class WandbServer:
    """`fault` is the status that all requests get from now on; 0 answers nothing. `stopped`: a
    person pressed Stop."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.runs: dict[str, Sent] = {}
        self.uploads: dict[str, bytes] = {}
        self.fault: int | None = None
        self.stopped = False
        self._closing = threading.Event()
        self._http = Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"server_of": self}))
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._http.shutdown()
            self._http.server_close()

    def answered(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.requests.append((path, headers, body))
        if self.fault == 0 or self._closing.is_set():
            self._closing.wait()
            raise ConnectionResetError
        if self.fault:
            return self.fault, {
                "errors": [{"message": SAID[self.fault]}],
                "data": {"upsertBucket": None},
            }
        return 200, self._answer(path, body)

    def _answer(self, path: str, body: bytes) -> Any:
        if path == "/graphql":
            asked = json.loads(body)
            answer = ANSWERS.get(asked["operationName"])
            return {"data": answer(self, asked["variables"]) if answer else {}}
        if path.endswith("/file_stream"):
            self.runs[path.split("/")[-2]].take(json.loads(body))
            return {"stopped": self.stopped}
        self.uploads[path] = body
        return {}

    def _resume_status(self, told: dict[str, Any]) -> dict[str, Any]:
        known = told["name"] in self.runs
        return {"model": {**project(told), "bucket": self._bucket(told) if known else None}}

    def _upsert(self, told: dict[str, Any]) -> dict[str, Any]:
        new = told["name"] not in self.runs
        run = self.runs.setdefault(told["name"], Sent())
        run.told |= {name: value for name, value in told.items() if value is not None}
        return {
            "upsertBucket": {
                "bucket": {**self._bucket(told), "project": project(told)},
                "inserted": new,
            }
        }

    def _bucket(self, told: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[told["name"]]
        telemetry = json.loads(run.told["config"])["_wandb"]["value"][
            "t"
        ]  # a client resumes no run that lacks it
        return {
            "id": told["name"],
            "name": told["name"],
            "displayName": run.told["displayName"],
            "description": "",
            "config": run.told["config"],
            "wandbConfig": json.dumps({"t": telemetry}),
            "summaryMetrics": "{}",
            "sweepName": "",
            "tags": [],
            "notes": "",
            **{count: len(run.streams.get(file, [])) for count, file in COUNTED.items()},
            "historyTail": json.dumps(run.streams.get(HISTORY, [])[-1:]),
            "eventsTail": json.dumps(run.streams.get(COUNTED["eventsLineCount"], [])[-1:]),
        }

    def _run_files(self, told: dict[str, Any]) -> dict[str, Any]:
        files = [
            {"name": name, "uploadUrl": f"{self.url}/storage/{told['run']}/{name}"}
            for name in told["files"]
        ]
        return {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}


ANSWERS: dict[str, Callable[[WandbServer, dict[str, Any]], Any]] = {
    "RunResumeStatus": WandbServer._resume_status,
    "UpsertBucket": WandbServer._upsert,
    "CreateRunFiles": WandbServer._run_files,
}


def project(told: dict[str, Any]) -> dict[str, Any]:
    entity = told.get("entity") or "me"
    return {"id": "p", "name": told["project"], "entity": {"id": "e", "name": entity}}


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *where: Any) -> None:
        """A client that hangs up is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, answer = self.server_of.answered(self.path, dict(self.headers), body)
        self.send_response(status)
        words = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(words)))
        self.end_headers()
        self.wfile.write(words)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: object) -> None:
        pass
