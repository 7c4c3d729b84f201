"""Any server that speaks OpenAI's chat completions, through the `openai` client alone."""

import json
import math
from typing import Any

from pipeline.backends import api_client
from pipeline.config import EndpointEngine
from pipeline.scorers.judging import Question, Reply, not_installed
from pipeline.scorers.judging.async_requests import Service, named, unfit_text

LEAST = -1000.0  # a log-probability below it is none that a float tells from never
ALTERNATIVES = 20  # of the first token: as many as OpenAI gives


def endpoint(cfg: EndpointEngine, form: str, knob: str) -> Service:
    try:
        import openai
    except ImportError as error:
        raise not_installed(cfg, knob, error) from error
    client = api_client.make_client(
        openai, openai.AsyncOpenAI, knob, cfg.runtime, "DefaultAioHttpClient"
    )

    async def send(question: Question) -> Reply:
        """As text: a reply that is no completion is ours to name, and typed ones cost more than all the rest."""
        return reply_of(
            await client.post("/chat/completions", body=request(cfg, form, question), cast_to=str)
        )

    return Service(knob, cfg.runtime, cfg.model, openai, client, send)


def request(cfg: EndpointEngine, form: str, question: Question) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": cfg.model,
        "messages": [dict(message) for message in question.messages],
        "max_tokens": cfg.max_tokens,
        "temperature": cfg.temperature,
    }
    if cfg.probabilities and form == "word":
        body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    body |= _restricted(cfg.dialect, form, question.labels) | cfg.body
    return {name: value for name, value in body.items() if value is not None}


def _restricted(dialect: str, form: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """What keeps the reply to its form, where the server understands it."""
    match dialect, form:
        case "vllm", "word":
            return {"structured_outputs": {"choice": list(labels)}}
        case "vllm", "json":
            return {"structured_outputs": {"json": schema(labels)}}
        case "openai", "json":
            named = {"name": "verdict", "strict": True, "schema": schema(labels)}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case _:
            return {}


def schema(labels: tuple[str, ...]) -> dict[str, Any]:
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


def reply_of(text: str) -> Reply:
    """A chat completion taken apart; whatever it is not is a fault and never an exception."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return Reply(None, fault="the server's reply is no JSON")
    if not isinstance(body, dict):
        return Reply(None, fault="the server's reply is no chat completion")
    usage = body.get("usage")
    told: dict[str, Any] = {
        "model": named(body),
        "tokens_in": api_client.read_usage(usage, "prompt_tokens"),
        "tokens_out": api_client.read_usage(usage, "completion_tokens"),
    }
    match body.get("choices"):
        case [{"finish_reason": "length", "message": {"content": None | ""}}, *_]:
            return Reply(
                None, fault="the reply ended at engine.max_tokens before it said anything", **told
            )
        case [{"message": {"content": str(content)}} as choice, *_]:
            if fault := unfit_text(content):
                return Reply(None, fault=fault, **told)
            return Reply(content, _first(choice), **told)
        case []:
            return Reply(None, fault="the server's reply has no choices", **told)
        case _:
            return Reply(None, fault="the server's reply has no choices[0].message.content", **told)


def _first(choice: dict[str, Any]) -> dict[str, float] | None:
    """The first token's alternatives with their probabilities."""
    match choice.get("logprobs"):
        case {"content": [{"top_logprobs": [_, *_] as likeliest}, *_]}:
            known = [
                (one["token"], math.exp(max(float(one["logprob"]), LEAST)))
                for one in likeliest
                if isinstance(one, dict)
                and _is_token(one.get("token"))
                and _is_logprob(one.get("logprob"))
            ]
            return {
                token: sum(chance for name, chance in known if name == token) for token, _ in known
            }
        case _:
            return None


def _is_logprob(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and float(value) <= 1e-6  # NaN is not
    except OverflowError:
        return False


def _is_token(value: Any) -> bool:
    """Half a character is no token's text, and no label begins with it."""
    return isinstance(value, str) and not unfit_text(value)
