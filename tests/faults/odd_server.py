"""A server on loopback that replies as configured: any bytes, any code, whole or drop by drop."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUICK = {"retry-after-ms": "10"}


class OddServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], "Odd"]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Odd:
    """`drip`: seconds between two bytes; `wait`: seconds before the first."""

    def __init__(
        self,
        body: Any,
        code: int = 200,
        kind: str = "application/json",
        drip: float = 0,
        wait: float = 0,
    ):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.code, self.kind, self.drip, self.wait = code, kind, drip, wait


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddServer

    def do_GET(self) -> None:
        self.send(Odd({"object": "list", "data": [{"id": "m", "object": "model"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append(body)
        self.send(self.server.reply(body))

    def send(self, odd: Odd) -> None:
        with contextlib.suppress(ConnectionError):
            time.sleep(odd.wait)
            self.send_response(odd.code)
            for name, value in {
                "content-type": odd.kind,
                "content-length": str(len(odd.body)),
                **QUICK,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            pieces = (
                [odd.body[at : at + 1] for at in range(len(odd.body))] if odd.drip else [odd.body]
            )
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(odd.drip)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(reply: Callable[[dict[str, Any]], Odd]) -> Iterator[OddServer]:
    server = OddServer(reply)
    thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chat(text: Any = "A", **more: Any) -> dict[str, Any]:
    """A chat completion; `more` of its fields, `choice` of its one choice."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    choice |= more.pop("choice", {})
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    return {"id": "x", "model": "m", "choices": [choice], "usage": usage, **more}
