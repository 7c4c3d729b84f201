"""A model that only a server holds, asked in words by its name: what comes back is text.

Its tokens are those that the model it is measured by would need for that text; there is no log-probability.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Self

from pipeline.artifacts import Model
from pipeline.backends import Billed, Completion, Failed, OnTokens, Request, api_client
from pipeline.backends.chat import Chat
from pipeline.backends.endpoint import is_text
from pipeline.backends.in_flight import RequestPool
from pipeline.config import Limits, ServedModel
from pipeline.errors import UserError, make_printable

SHOWN = 40  # characters of why a server ended an answer


class ByName:
    def __init__(self, cfg: ServedModel, policy: Model, knob: str):
        self.cfg, self.knob = cfg, knob
        self.text = Chat(policy)
        self._under_way = RequestPool(cfg.runtime.concurrency, cfg.runtime.timeout)
        self._longest: int

    def start(self, model: Model, limits: Limits) -> Self:
        import openai

        self._longest = limits.completion
        self._under_way.open(
            api_client.client(openai, openai.AsyncOpenAI, self.knob, self.cfg.runtime)
        )
        return self

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | Failed]:
        return self._under_way.answers(blocks, self._ask)

    async def _ask(self, request: Request) -> Completion | Failed:
        import openai

        try:
            reply = await self._under_way.client.post(
                "/chat/completions", body=self._body(request), cast_to=str
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise api_client.unaccepted(self.knob, self.cfg.runtime, error.status_code) from None
        except openai.NotFoundError:
            raise UserError(
                f"{self.knob}.model={self.cfg.model}: {self.cfg.runtime.base_url} does not serve it.\n"
                "  Give the name that it has there, and an address up to and with /v1."
            ) from None
        except openai.OpenAIError as error:
            return Failed(request.sample_id, api_client.fault(openai, self.cfg.runtime, error))
        except (
            Exception
        ) as error:  # whatever a reply does to the client, it is the fault of this one alone
            return Failed(request.sample_id, f"the reply cannot be read ({type(error).__name__})")
        return self._completion(request, _read(reply))

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": self._longest,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed >> 32,  # some servers take no more than 32 bits
            **self.cfg.body,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _completion(self, request: Request, reply: dict[str, Any]) -> Completion | Failed:
        match reply:
            case {
                "choices": [
                    {"message": {"content": str(text)}, "finish_reason": "stop" | "length" as why},
                    *_,
                ]
            } if is_text(text):
                ids = self.text.spelled(text)
                whole = [*ids, self.text.end] if why == "stop" else ids
                return Completion(
                    request.sample_id, whole, None, why, text, _billed(reply, request, len(ids))
                )
            case {"choices": [{"finish_reason": str(why)}, *_]}:
                reason = f"the server ended it with {make_printable(why, SHOWN)} and gave no text"
                return Failed(request.sample_id, reason, _billed(reply, request, 0))
            case _:
                return Failed(request.sample_id, "the reply is no chat completion")

    def close(self) -> None:
        self._under_way.close()


def _read(reply: str) -> dict[str, Any]:
    try:
        read = json.loads(reply)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _billed(reply: dict[str, Any], request: Request, came: int) -> Billed:
    """Thinking that the server keeps to itself is in its own count alone."""
    usage, asked = reply.get("usage"), len(request.prompt_token_ids)
    return Billed(
        api_client.counted(usage, "prompt_tokens", asked),
        api_client.counted(usage, "completion_tokens", came),
    )
