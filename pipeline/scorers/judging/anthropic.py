"""Anthropic's API through its own client, which is an extra. It gives no token probabilities."""

import json
from typing import Any

from pipeline.backends import api_client
from pipeline.config import AnthropicEngine
from pipeline.scorers.judging import Question, Reply, not_installed
from pipeline.scorers.judging.async_requests import Service, named, unfit_text


def anthropic(cfg: AnthropicEngine, knob: str) -> Service:
    try:
        import anthropic as library
    except ImportError as error:
        raise not_installed(cfg, knob, error) from error
    client = api_client.make_client(
        library, library.AsyncAnthropic, knob, cfg.runtime, "DefaultAioHttpClient"
    )

    async def send(question: Question) -> Reply:
        return reply_of(await client.post("/v1/messages", body=request(cfg, question), cast_to=str))

    return Service(knob, cfg.runtime, cfg.model, library, client, send)


def request(cfg: AnthropicEngine, question: Question) -> dict[str, Any]:
    """The instruction is no message here but a field of its own."""
    system = [message["content"] for message in question.messages if message["role"] == "system"]
    body: dict[str, Any] = {
        "model": cfg.model,
        "system": system[0] if system else None,
        "messages": [dict(message) for message in question.messages if message["role"] != "system"],
        "max_tokens": cfg.max_tokens,
        "temperature": cfg.temperature,
        **cfg.body,
    }
    return {name: value for name, value in body.items() if value is not None}


def reply_of(text: str) -> Reply:
    """A message taken apart; whatever it is not is a fault and never an exception."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Reply(None, fault="the server's reply is no JSON")
    if not isinstance(body, dict) or not isinstance(body.get("content"), list):
        return Reply(None, fault="the server's reply is no message")
    tokens_in, tokens_out = (
        api_client.read_usage(body.get("usage"), name) for name in ("input_tokens", "output_tokens")
    )
    said = [
        part["text"]
        for part in body["content"]
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    model = named(body)
    if not said:
        return Reply(None, None, model, tokens_in, tokens_out, "the server's reply has no text")
    whole = "".join(said)
    if fault := unfit_text(whole):
        return Reply(None, None, model, tokens_in, tokens_out, fault)
    return Reply(whole, None, model, tokens_in, tokens_out)
