"""Anthropic's API through its own client, which is an extra. It gives no token probabilities."""

import json
from typing import Any

from pipeline.backends import api_client
from pipeline.config import AnthropicEngine
from pipeline.scorers.judging import JudgeRequest, Response, not_installed_error
from pipeline.scorers.judging.async_requests import ServiceEngine, find_text_fault, read_model_name


def open_client(cfg: AnthropicEngine, knob: str) -> tuple[Any, Any]:
    """The package, and a client of it."""
    try:
        import anthropic as library
    except ImportError as error:
        raise not_installed_error(cfg, knob, error) from error
    client = api_client.make_client(
        library, library.AsyncAnthropic, knob, cfg.runtime, "DefaultAioHttpClient"
    )
    return library, client


def open_anthropic(cfg: AnthropicEngine, knob: str) -> ServiceEngine:
    library, client = open_client(cfg, knob)

    async def send(request: JudgeRequest) -> Response:
        body = build_body(cfg, request)
        return parse_response(await client.post("/v1/messages", body=body, cast_to=str))

    return ServiceEngine(knob, cfg.runtime, cfg.model, library, client, send)


def build_body(cfg: AnthropicEngine, request: JudgeRequest) -> dict[str, Any]:
    """The instruction is not a message here but a separate field."""
    system = [message["content"] for message in request.messages if message["role"] == "system"]
    body: dict[str, Any] = {
        "model": cfg.model,
        "system": system[0] if system else None,
        "messages": [dict(message) for message in request.messages if message["role"] != "system"],
        "max_tokens": cfg.max_tokens,
        "temperature": cfg.temperature,
        **cfg.body,
    }
    return {name: value for name, value in body.items() if value is not None}


def parse_response(text: str) -> Response:
    """A message taken apart. Anything else is a fault and never an exception."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Response(None, fault="the server's reply is not JSON")
    if not isinstance(body, dict) or not isinstance(body.get("content"), list):
        return Response(None, fault="the server's reply is not a message")
    usage, model = body.get("usage"), read_model_name(body)
    tokens = (
        api_client.read_usage(usage, "input_tokens"),
        api_client.read_usage(usage, "output_tokens"),
    )
    parts = [
        part["text"]
        for part in body["content"]
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    if not parts:
        return Response(None, None, model, *tokens, "the server's reply has no text")
    content = "".join(parts)
    if fault := find_text_fault(content):
        return Response(None, None, model, *tokens, fault)
    return Response(content, None, model, *tokens)
