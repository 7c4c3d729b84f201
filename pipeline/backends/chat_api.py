"""A model that exists only behind a chat API, addressed by name: its replies are text.

Their tokens are those of the tokenizer that measures them. They have no log-probability. Calls of
tools become text as this tokenizer's chat template writes them.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Self

from pipeline.artifacts import Model
from pipeline.backends import (
    BilledTokens,
    Completion,
    CompletionRequest,
    FailedRequest,
    OnTokens,
    api_client,
)
from pipeline.backends.chat import ModelTokenizer
from pipeline.backends.endpoint import is_text
from pipeline.backends.in_flight import RequestPool
from pipeline.config import Limits, ServedModel
from pipeline.data.readers import RowFault
from pipeline.data.tool_turns import pack_messages, to_answer, unpack_messages
from pipeline.errors import UnrenderableTemplate, UserError, make_printable

MAX_QUOTED = 40  # characters of the server's reason for ending an answer


class ChatApiSampler:
    def __init__(self, cfg: ServedModel, policy: Model, knob: str):
        self.cfg, self.knob = cfg, knob
        self.tokenizer = ModelTokenizer(policy)
        self._pool = RequestPool(cfg.runtime.concurrency, cfg.runtime.timeout)
        self._max_tokens: int

    def start(self, model: Model, limits: Limits) -> Self:
        import openai

        self._max_tokens = limits.completion
        self._pool.open(
            api_client.make_client(openai, openai.AsyncOpenAI, self.knob, self.cfg.runtime)
        )
        return self

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | FailedRequest]:
        return self._pool.run_requests(blocks, self._request_completion)

    async def _request_completion(self, request: CompletionRequest) -> Completion | FailedRequest:
        import openai

        try:
            reply = await self._pool.client.post(
                "/chat/completions", body=self._build_body(request), cast_to=str
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise api_client.make_key_error(
                self.knob, self.cfg.runtime, error.status_code
            ) from None
        except openai.NotFoundError:
            raise UserError(
                f"{self.knob}.model={self.cfg.model}: {self.cfg.runtime.base_url}"
                " does not serve it.\n"
                "  Give the model's name on that server, and an address up to and including /v1."
            ) from None
        except openai.OpenAIError as error:
            reason = api_client.describe_error(openai, self.cfg.runtime, error)
            return FailedRequest(request.sample_id, reason)
        except Exception as error:  # a reply that breaks the client fails its own request alone
            reason = f"the reply cannot be read ({type(error).__name__})"
            return FailedRequest(request.sample_id, reason)
        return self._parse_completion(request, _parse_reply(reply))

    def _build_body(self, request: CompletionRequest) -> dict[str, Any]:
        messages, tools = unpack_messages([*request.messages], encode=json.dumps)
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": [dict(message) for message in messages],
            "tools": tools or None,
            "max_tokens": self._max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed >> 32,  # some servers accept no more than 32 bits
            **self.cfg.body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _parse_completion(
        self, request: CompletionRequest, reply: dict[str, Any]
    ) -> Completion | FailedRequest:
        match reply:
            case {"choices": [{"message": {"tool_calls": [_, *_]} as message}, *_]}:
                return self._parse_calls(request, message, reply)
            case {
                "choices": [
                    {
                        "message": {"content": str(text)},
                        "finish_reason": "stop" | "length" as finish_reason,
                    },
                    *_,
                ]
            } if is_text(text):
                ids = self.tokenizer.encode_literal(text)
                token_ids = [*ids, self.tokenizer.eos] if finish_reason == "stop" else ids
                billed = _count_billed(reply, request, len(ids))
                return Completion(
                    request.sample_id,
                    token_ids,
                    None,
                    finish_reason,
                    text,
                    billed,
                    is_retokenised=True,
                )
            case {"choices": [{"finish_reason": str(finish_reason)}, *_]}:
                quoted = make_printable(finish_reason, MAX_QUOTED)
                reason = f"the server ended it with {quoted} and gave no text"
                return FailedRequest(request.sample_id, reason, _count_billed(reply, request, 0))
            case _:
                return FailedRequest(request.sample_id, "the reply is not a chat completion")

    def _parse_calls(
        self, request: CompletionRequest, message: dict[str, Any], reply: dict[str, Any]
    ) -> Completion | FailedRequest:
        try:
            answer = to_answer(pack_messages([{**message, "role": "assistant"}]))
            text, ids = self.tokenizer.write_answer([*request.messages], answer, {})
        except (RowFault, UnrenderableTemplate) as fault:
            reason = make_printable(str(fault).splitlines()[0])
            return FailedRequest(request.sample_id, reason, _count_billed(reply, request, 0))
        billed = _count_billed(reply, request, len(ids))
        return Completion(request.sample_id, ids, None, "stop", text, billed, is_retokenised=True)

    def close(self) -> None:
        self._pool.close()


def _parse_reply(reply: str) -> dict[str, Any]:
    try:
        parsed = json.loads(reply)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _count_billed(
    reply: dict[str, Any], request: CompletionRequest, text_tokens: int
) -> BilledTokens:
    """The server's own count, which alone includes reasoning that it does not return."""
    usage = reply.get("usage")
    return BilledTokens(
        api_client.read_usage(usage, "prompt_tokens", len(request.prompt_token_ids)),
        api_client.read_usage(usage, "completion_tokens", text_tokens),
    )
