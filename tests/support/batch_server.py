"""A fake service with the batches of OpenAI and of Anthropic, in this process, that counts.

A batch waits until a test lets it end (`finish`). `answered` has the name of every request that was
answered, which is what a service takes money for; `posts` counts the batches that were made.
"""

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from tests.support.judges import completion, message

Body = dict[str, Any]


class BatchServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, str] = {}
        self.batches: dict[str, Body] = {}
        self.answered = Counter[str]()
        self.singles = 0  # requests outside of batches
        self.fault = ""  # of the next submission: `before` or `after` the batch is made, or `hang`
        self.names = count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def sizes(self) -> list[int]:
        """Of every batch that was made."""
        return [len(batch["requests"]) for batch in self.batches.values()]

    def finish(self, how: str = "all", count: int | None = None) -> None:
        """End all batches, or the first `count`.

        `half` expires, `some` fail by the server's fault, or all are wrong.
        """
        for batch in [*self.batches.values()][:count]:
            if batch["ended"]:
                continue
            batch["ended"], batch["how"] = True, how
            for at, request in enumerate(batch["requests"]):
                fault = self.choose_fault(how, at, len(batch["requests"]))
                batch["outcomes"].append((request, fault))
                if not fault:
                    self.answered[request["custom_id"]] += 1

    @staticmethod
    def choose_fault(how: str, at: int, size: int) -> str:
        is_first_half = at < size / 2
        faults = {"half": "expired", "some": "broken", "wrong": "wrong"}
        return "" if how == "all" or (is_first_half and how != "wrong") else faults[how]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BatchServer

    @property
    def account(self) -> str:
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-api-key") or bearer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        own = [b for b in self.server.batches.values() if b["account"] == self.account]
        if path == "/v1/batches":
            self.send(self.list_page(own, query, "after", show_openai))
        elif path == "/v1/messages/batches":
            self.send(self.list_page(own, query, "after_id", show_anthropic))
        elif found := re.fullmatch(r"/v1/files/(\w+)-(output|errors)/content", path):
            self.send_text(write_openai_file(self.server.batches[found[1]], found[2]))
        else:
            name = re.fullmatch(r"/v1/(?:messages/)?batches/(\w+)(/results)?", path)
            batch = next((b for b in own if name and b["id"] == name[1]), None)
            if batch is None:
                self.send({"error": {"message": f"no batch {path}"}}, 404)
            elif name[2]:
                self.send_text(write_anthropic_results(batch))
            else:
                show = show_anthropic if "/messages/" in path else show_openai
                self.send(show(batch))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/files":
            name = f"file{next(self.server.names)}"
            head = data.index(b"filename=")
            self.server.files[name] = (
                data[data.index(b"\r\n\r\n", head) :].split(b"\r\n--")[0].decode()
            )
            self.send({"id": name, "object": "file", "bytes": 0, "created_at": 0, "filename": "x"})
        elif self.path in ("/v1/batches", "/v1/messages/batches"):
            self.make_batch(json.loads(data))
        else:
            self.server.singles += 1
            asked = json.loads(data)
            self.send(message(asked) if self.path.endswith("/messages") else completion(asked))

    def make_batch(self, body: Body) -> None:
        fault, self.server.fault = self.server.fault, ""
        if fault == "before":
            self.close_connection = True
            return
        requests = body.get("requests")
        if requests is None:
            lines = self.server.files[body["input_file_id"]].splitlines()
            requests = [json.loads(line) for line in lines if line.strip()]
        batch = {
            "id": f"batch{next(self.server.names)}",
            "account": self.account,
            "requests": requests,
            "metadata": body.get("metadata"),
            "created": time.time(),
            "ended": False,
            "how": "",
            "outcomes": [],
        }
        self.server.batches[batch["id"]] = batch
        if fault == "hang":
            time.sleep(20)
        if fault:
            self.close_connection = True
            return
        show = show_openai if requests[0].get("body") else show_anthropic
        self.send(show(batch))

    def list_page(self, batches: list[Body], query: str, cursor: str, show: Any) -> Body:
        """One batch a page, the newest first."""
        newest = batches[::-1]
        after = re.search(rf"\b{cursor}=(\w+)", query)
        start = 1 + [b["id"] for b in newest].index(after[1]) if after else 0
        return {
            "data": [show(batch) for batch in newest[start : start + 1]],
            "has_more": start + 1 < len(newest),
        }

    def send(self, body: Body, code: int = 200) -> None:
        self.send_text(json.dumps(body), code, "application/json")

    def send_text(self, text: str, code: int = 200, kind: str = "application/x-jsonl") -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


# ── OpenAI ────────────────────────────────────────────────────────────────────────────────────────


def show_openai(batch: Body) -> Body:
    done = sum(not fault for _, fault in batch["outcomes"])
    status = "expired" if batch["how"] == "half" else "completed"
    shown = {
        "id": batch["id"],
        "object": "batch",
        "status": status if batch["ended"] else "in_progress",
        "metadata": batch["metadata"],
        "created_at": int(batch["created"]),
        "request_counts": {"total": len(batch["requests"]), "completed": done, "failed": 0},
        "output_file_id": None,
        "error_file_id": None,
    }
    if batch["ended"]:
        shown["output_file_id"] = f"{batch['id']}-output" if done else None
        has_faults = done < len(batch["requests"])
        shown["error_file_id"] = f"{batch['id']}-errors" if has_faults else None
    if batch["how"] == "refused":
        shown["status"], shown["output_file_id"], shown["error_file_id"] = "failed", None, None
        shown["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "too much"}]}
    return shown


def write_openai_file(batch: Body, name: str) -> str:
    lines = []
    for request, fault in batch["outcomes"]:
        if bool(fault) != (name == "errors"):
            continue
        reply = {"status_code": 200, "body": completion(request["body"])} if not fault else None
        error = None
        if fault == "expired":
            error = {"code": "batch_expired", "message": "This request could not be executed."}
        elif fault:
            reply = {"status_code": 500 if fault == "broken" else 400, "body": {"error": {}}}
        lines.append({"custom_id": request["custom_id"], "response": reply, "error": error})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


# ── Anthropic ─────────────────────────────────────────────────────────────────────────────────────


def show_anthropic(batch: Body) -> Body:
    done = sum(not fault for _, fault in batch["outcomes"])
    total = len(batch["requests"])
    counts = {"processing": 0 if batch["ended"] else total, "succeeded": done}
    counts |= {"errored": total - done if batch["ended"] else 0, "expired": 0, "canceled": 0}
    return {
        "id": batch["id"],
        "type": "message_batch",
        "processing_status": "ended" if batch["ended"] else "in_progress",
        "request_counts": counts,
        "created_at": datetime.fromtimestamp(batch["created"], UTC).isoformat(),
    }


def write_anthropic_results(batch: Body) -> str:
    lines = []
    for request, fault in batch["outcomes"]:
        kind = {"broken": "api_error", "wrong": "invalid_request_error"}.get(fault)
        error = {"type": "error", "error": {"type": kind, "message": "no"}}
        result: Body = {"type": "errored", "error": error}
        if not fault:
            result = {"type": "succeeded", "message": message(request["params"])}
        elif fault == "expired":
            result = {"type": "expired"}
        lines.append({"custom_id": request["custom_id"], "result": result})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


@contextmanager
def batch_server():
    server = BatchServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
