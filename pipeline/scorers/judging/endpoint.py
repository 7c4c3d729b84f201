"""Any server that speaks OpenAI's chat completions, through the `openai` client alone."""

import json
import math
from typing import Any

from pipeline.backends import api_client
from pipeline.config import EndpointEngine
from pipeline.scorers.judging import JudgeRequest, Response, not_installed_error
from pipeline.scorers.judging.async_requests import (
    ServiceEngine,
    find_text_fault,
    read_model_name,
)

MIN_LOGPROB = -1000.0  # a float cannot tell a lower log-probability from never
ALTERNATIVES = 20  # of the first token: as many as OpenAI gives


def open_client(cfg: EndpointEngine, knob: str) -> tuple[Any, Any]:
    """The package, and a client of it."""
    try:
        import openai
    except ImportError as error:
        raise not_installed_error(cfg, knob, error) from error
    client = api_client.make_client(
        openai, openai.AsyncOpenAI, knob, cfg.runtime, "DefaultAioHttpClient"
    )
    return openai, client


def open_endpoint(cfg: EndpointEngine, form: str, knob: str) -> ServiceEngine:
    library, client = open_client(cfg, knob)

    async def send(request: JudgeRequest) -> Response:
        body = build_body(cfg, form, request)
        # As text: we name what is not a completion, and typed replies cost more than all the rest.
        return parse_response(await client.post("/chat/completions", body=body, cast_to=str))

    return ServiceEngine(knob, cfg.runtime, cfg.model, library, client, send)


def build_body(cfg: EndpointEngine, form: str, request: JudgeRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": cfg.model,
        "messages": [dict(message) for message in request.messages],
        "max_tokens": cfg.max_tokens,
        "temperature": cfg.temperature,
    }
    if cfg.probabilities and form == "word":
        body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    body |= _restrict_output(cfg.dialect, form, request.labels) | cfg.body
    return {name: value for name, value in body.items() if value is not None}


def _restrict_output(dialect: str, form: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields that hold the reply to its form, where the server understands them."""
    match dialect, form:
        case "vllm", "word":
            return {"structured_outputs": {"choice": list(labels)}}
        case "vllm", "json":
            return {"structured_outputs": {"json": build_schema(labels)}}
        case "openai", "json":
            schema = {"name": "verdict", "strict": True, "schema": build_schema(labels)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case _:
            return {}


def build_schema(labels: tuple[str, ...]) -> dict[str, Any]:
    """The reason comes first, so that the verdict follows from it."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "verdict": {"type": "string", "enum": list(labels)},
        },
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }


def parse_response(text: str) -> Response:
    """A chat completion taken apart. Anything else is a fault and never an exception."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Response(None, fault="the server's reply is not JSON")
    if not isinstance(body, dict):
        return Response(None, fault="the server's reply is not a chat completion")
    usage = body.get("usage")
    facts: dict[str, Any] = {
        "model": read_model_name(body),
        "tokens_in": api_client.read_usage(usage, "prompt_tokens"),
        "tokens_out": api_client.read_usage(usage, "completion_tokens"),
    }
    match body.get("choices"):
        case [{"finish_reason": "length", "message": {"content": None | ""}}, *_]:
            fault = "the reply ended at engine.max_tokens before any text"
            return Response(None, fault=fault, **facts)
        case [{"message": {"content": str(content)}} as choice, *_]:
            if fault := find_text_fault(content):
                return Response(None, fault=fault, **facts)
            return Response(content, _read_first_token(choice), **facts)
        case []:
            return Response(None, fault="the server's reply has no choices", **facts)
        case _:
            fault = "the server's reply has no choices[0].message.content"
            return Response(None, fault=fault, **facts)


def _read_first_token(choice: dict[str, Any]) -> dict[str, float] | None:
    """The first token's alternatives with their probabilities."""
    match choice.get("logprobs"):
        case {"content": [{"top_logprobs": [_, *_] as alternatives}, *_]}:
            by_token: dict[str, list[float]] = {}
            for one in alternatives:
                if not isinstance(one, dict) or not _is_token(one.get("token")):
                    continue
                if _is_logprob(one.get("logprob")):
                    probability = math.exp(max(float(one["logprob"]), MIN_LOGPROB))
                    by_token.setdefault(one["token"], []).append(probability)
            return {token: sum(probabilities) for token, probabilities in by_token.items()}
        case _:
            return None


def _is_logprob(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and float(value) <= 1e-6  # NaN is not
    except OverflowError:
        return False


def _is_token(value: Any) -> bool:
    """Half a character is not a token's text, and no label begins with it."""
    return isinstance(value, str) and not find_text_fault(value)
