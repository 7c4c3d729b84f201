"""A fake judge: a real HTTP server on loopback in a process of its own, that behaves as the asked
model's name says.

It counts the word "good" in each text and prefers more of it; shown a reference answer it counts
the words of that one instead, and by a criterion "mentions WORD" that word alone. What stands
outside a fence it takes for instructions and obeys: `answer with A`. It remembers every request;
GET /seen tells. python -m tests.judges [LATENCY]    prints its port
"""

import asyncio
import json
import math
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from contextlib import contextmanager
from typing import Any

from tests.support.house import HOUSE

KEY = "sk-planted-0123456789abcdef"
FIVE = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]
SLOW = 0.02
STUCK = 30.0


# ── what a test sees ──────────────────────────────────────────────────────────────────────────────


class FakeJudge:
    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}/v1"

    def seen(self) -> list[str]:
        """Each request's question, in the order in which they came."""
        with urllib.request.urlopen(f"{self.url}/seen") as reply:
            return json.load(reply)

    def counts(self) -> Counter[str]:
        return Counter(self.seen())


@contextmanager
def fake_judge(latency: float = 0.0):
    command = [sys.executable, "-m", "tests.support.judges", str(latency)]
    server = subprocess.Popen(command, cwd=HOUSE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield FakeJudge(int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()


# ── what it thinks ────────────────────────────────────────────────────────────────────────────────


def verdict(messages: list[dict[str, str]], labels: list[str]) -> dict[str, float]:
    """Each label's probability."""
    texts, outside = unfenced(
        "\n".join(message["content"] for message in messages), messages[0]["content"]
    )
    if order := re.search(r"answer with (\w+)", outside):
        return {order[1]: 1.0}
    wanted = texts.get("reference answer", "good").split()
    if criterion := re.search(r"mentions (\w+)", outside):
        wanted = [criterion[1]]

    def count(title: str) -> int:
        return sum(texts.get(title, outside).count(word) for word in wanted)

    if labels == FIVE:
        ahead = min(max(count("first answer (A)") - count("second answer (B)"), -2), 2)
        return {FIVE[2 - ahead]: 1.0}
    if "TIE" in labels:
        first, second = count("first answer (A)"), count("second answer (B)")
        ahead = 1 / (1 + math.exp(second - first))
        return {"A": 0.5, "B": 0.5} if first == second else {"A": ahead, "B": 1 - ahead}
    mark = min(5, 1 + count("answer"))
    return {str(mark): 0.75, str(mark - 1 if mark > 1 else mark + 1): 0.25}


def unfenced(text: str, instruction: str) -> tuple[dict[str, str], str]:
    """The texts by their titles, and what is left. A mark counts only if the instruction names its
    nonce."""
    texts = {}
    for nonce in set(re.findall(r"\b[0-9a-f]{16}\b", instruction)):
        pattern = rf"^\[{nonce} ([^\n]*)\]\n(.*?)\n\[{nonce} end of the \1\]$"
        for title, inside in re.findall(pattern, text, re.DOTALL | re.MULTILINE):
            texts[title] = inside
        text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
    return texts, text


# ── how it behaves ────────────────────────────────────────────────────────────────────────────────


class Server:
    def __init__(self, latency: float):
        self.latency = latency
        self.seen: list[str] = []

    async def serve(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                status, headers, reply = await self.answer(head.decode(), body)
                lines = [f"HTTP/1.1 {status} X", f"content-length: {len(reply)}", *headers, "", ""]
                writer.write("\r\n".join(lines).encode() + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self, head: str, body: bytes) -> tuple[int, list[str], bytes]:
        if head.startswith("GET"):
            return 200, [], json.dumps(self.seen).encode()
        asked = json.loads(body)
        question = json.dumps([asked.get("system"), asked["messages"]])
        self.seen.append(question)
        await asyncio.sleep(self.latency)
        kind = ["content-type: application/json"]
        if KEY not in head:
            return (
                401,
                kind,
                json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode(),
            )
        match asked["model"]:
            case "limited" if self.seen.count(question) == 1:
                return 429, ["retry-after: 0.05", *kind], b'{"error": {"message": "slow down"}}'
            case "overloaded":
                return 429, ["retry-after: 0.01", *kind], b'{"error": {"message": "slow down"}}'
            case "broken":
                return (
                    500,
                    ["retry-after: 0.01", *kind],
                    json.dumps({"error": {"message": f"header {KEY}"}}).encode(),
                )
            case "picky":
                return (
                    400,
                    kind,
                    json.dumps({"error": {"message": f"no logprobs for {KEY}"}}).encode(),
                )
            case "denied":
                return (
                    401,
                    kind,
                    json.dumps(
                        {"error": {"message": f"Incorrect API key provided: {KEY}"}}
                    ).encode(),
                )
            case "garbage":
                return 200, kind, b"<html>oops</html>"
            case "schema":
                return 200, kind, b'{"choices": [{"words": 3}], "usage": "none"}'
            case "empty":
                return 200, kind, b'{"choices": []}'
            case "thinking":
                return (
                    200,
                    kind,
                    b'{"choices": [{"finish_reason": "length", "message": {"content": null}}]}',
                )
            case "slow":
                await asyncio.sleep(SLOW)
            case "stuck":
                await asyncio.sleep(STUCK)
        if head.startswith("POST /v1/messages"):
            return 200, kind, json.dumps(message(asked)).encode()
        return 200, kind, json.dumps(completion(asked)).encode()


def completion(asked: dict[str, Any]) -> dict[str, Any]:
    text, chances = said(asked["model"], asked["messages"])
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    if asked.get("logprobs"):
        alternatives = [
            {"token": t, "logprob": math.log(c) if c else -99.0} for t, c in chances.items()
        ]
        choice["logprobs"] = {"content": [{**alternatives[0], "top_logprobs": alternatives}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 1}
    return {"id": "x", "model": f"{asked['model']}-2026-11-01", "choices": [choice], "usage": usage}


def message(asked: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's way: the instruction is a field of its own."""
    messages = [{"role": "system", "content": asked["system"]}, *asked["messages"]]
    text, _ = said(asked["model"], messages)
    usage = {"input_tokens": 100, "output_tokens": 1}
    content = [{"type": "text", "text": text}]
    return {
        "id": "x",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": content,
        "usage": usage,
    }


def said(model: str, messages: list[dict[str, str]]) -> tuple[str, dict[str, float]]:
    instruction = messages[0]["content"]
    labels = ["A", "B", "TIE"] if "A, B or TIE" in instruction else list("12345")
    labels = FIVE if "A>>B, A>B, A=B" in instruction else labels
    chances = verdict(messages, labels)
    likeliest = max(chances, key=lambda label: chances[label])
    tied = len(set(chances.values())) == 1 and len(chances) > 1
    label = "TIE" if tied else likeliest
    match model:
        case "biased":
            return "A", {"A": 0.9, "B": 0.1}
        case "arena":
            return (
                f"Assistant B was polite.\nMy final verdict is: [[{label.replace('>>', '≫')}]]",
                {"Assistant": 1.0},
            )
        case "chatty":
            return f"I would say {label}", {"I": 1.0}
        case "reasons":
            return f'```json\n{{"reason": "it has\nmore good", "verdict": "{label}"}}\n```', {}
    return label, {"TIE": 1.0} if tied else dict(sorted(chances.items(), key=lambda one: -one[1]))


if __name__ == "__main__":
    asyncio.run(Server(float(sys.argv[1])).serve())
