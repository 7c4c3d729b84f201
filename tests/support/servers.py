"""A real server on loopback, as wrong as a test wants it: it answers from a policy, and fails on
request.

`fault(seed, tries)` names what goes wrong with this request, which is the tries-th for its seed, or
is None.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.backends import Backend, ChatTokenizer, CompletionRequest

Body = dict[str, Any]
Fault = Callable[[int, int], str | None]
QUICK = {"retry-after-ms": "20"}  # or the client waits half a second before it tries again


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, complete: Callable[[Body], Body], fault: Fault, key: str | None, **card: Any
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.complete, self.fault, self.key = complete, fault, key
        self.card = {"id": "served", "object": "model", **card}
        self.tries: Counter[int] = Counter()  # by seed, without those that measure the policy
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer(
            200 if self.knows_key() else 401, {"object": "list", "data": [self.server.card]}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self.knows_key():
            return self.answer(401, {"error": {"message": f"not {self.headers['authorization']}"}})
        seed = body["seed"]
        with self.server.lock:
            measuring = seed < 100
            if not measuring:
                self.server.tries[seed] += 1
            fault = None if measuring else self.server.fault(seed, self.server.tries[seed])
        if fault is not None:
            return self.fail(fault)
        with self.server.lock:
            choice = dict(self.server.complete(body))
        counted = {"usage": choice.pop("usage")} if "usage" in choice else {}
        return self.answer(
            200, {"id": "x", "object": "text_completion", "choices": [choice], **counted}
        )

    def knows_key(self) -> bool:
        return (
            self.server.key is None or self.headers["authorization"] == f"Bearer {self.server.key}"
        )

    def fail(self, fault: str) -> None:
        match fault:
            case "hang":
                time.sleep(5)
            case "half":
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"id": "x", "choices": [{"text": "a')
                self.close_connection = True
            case "junk":
                self.answer(200, {"id": "x", "choices": []})
            case "bare":
                self.answer(200, {"id": "x", "choices": [{"index": 0, "text": "a"}]})
            case "no json":
                self.answer(200, None)
            case _:
                echo = {"error": {"message": f"out of order for {self.headers['authorization']}"}}
                self.answer(int(fault), echo, **QUICK)

    def answer(self, code: int, body: Body | None, **headers: str) -> None:
        data = b"no json" if body is None else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {
            "content-type": "application/json",
            "content-length": str(len(data)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def drawn_by(backend: Backend) -> Callable[[Body], Body]:
    """As vLLM answers, from a started backend with transformers."""

    def complete(body: Body) -> Body:
        request = CompletionRequest(
            "x", body["prompt"], body["temperature"], body["top_p"], body["seed"]
        )
        [completion] = backend.generate([[request]])
        ids, stop = up_to_stop(backend.tokenizer, completion.token_ids, body.get("stop", []))
        return {
            "index": 0,
            "text": backend.tokenizer.decode(completion),
            "finish_reason": "stop" if stop else completion.finish_reason,
            "stop_reason": stop,
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
            # What matters of them is their sum, and for the policy each: so they come from one
            # forward pass.
            "logprobs": {"token_logprobs": token_logprobs(backend, body["prompt"], ids)},
        }

    return complete


def up_to_stop(
    text: ChatTokenizer, ids: list[int], stops: list[str]
) -> tuple[list[int], str | None]:
    """The tokens until a stop string is complete, and that string."""
    for size in range(len(ids)):
        if found := [stop for stop in stops if stop in text.decode_raw(ids[:size])]:
            return ids[:size], found[0]
    return ids, None


def token_logprobs(backend: Any, prompt: list[int], ids: list[int]) -> list[float]:
    import torch

    with torch.inference_mode():
        rows = (
            backend.module(torch.tensor([prompt + ids]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)
        )
    return rows.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1).tolist()


@contextlib.contextmanager
def serving(
    complete: Callable[[Body], Body],
    fault: Fault = lambda seed, tries: None,
    key: str | None = None,
    **card: Any,
) -> Iterator[Server]:
    server = Server(complete, fault, key, **card)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
