"""A judge without a model, for the twins of recipes that ask one: python recipes/twins/judge.py

It speaks OpenAI's protocol on http://127.0.0.1:8765/v1 and prefers the answer that repeats more
words of the request, which shows that judging works and not that an answer is good.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8765
# The texts that Strop puts between marks, by their titles.
FENCED = re.compile(r"^\[([0-9a-f]{16}) ([^\n]*)\]\n(.*?)\n\[\1 end of the \2\]$", re.S | re.M)


def give_verdict(text: str) -> str:
    """A, B or TIE where there are two answers; else a score from 1 to 5."""
    texts = {title: inside for _, title, inside in FENCED.findall(text)}
    request = " ".join(inside for title, inside in texts.items() if "answer" not in title)
    counts = [_count_shared(request, texts[title]) for title in texts if "answer" in title]
    match counts:
        case [first, second]:
            return "TIE" if first == second else "A" if first > second else "B"
        case _:
            return str(min(5, 1 + sum(counts)))


def _count_shared(request: str, answer: str) -> int:
    asked, said = (set(re.findall(r"[a-z]+", text.lower())) for text in (request, answer))
    return len(asked & said)


class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "twin-judge", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = "\n".join(message["content"] for message in body["messages"])
        message = {"role": "assistant", "content": give_verdict(text)}
        self._reply(
            {
                "id": "verdict",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1},
            }
        )

    def _reply(self, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """A request a line would hide what the run prints."""


def main(port: int) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", port), Judge)
    print(f"A judge for twins answers on http://127.0.0.1:{server.server_port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else PORT)
