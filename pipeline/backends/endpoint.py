"""Any OpenAI-compatible server that the user names: our token ids in, one request and one seed for each completion.

The `openai` client alone retries; what it gives up on is a Failed. A key that is not taken, or a model that is gone,
stops the run.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Self

from pipeline.artifacts import Model
from pipeline.backends import Billed, Completion, Failed, OnTokens, Request, api_client
from pipeline.backends.chat import Chat
from pipeline.backends.in_flight import RequestPool
from pipeline.backends.policy_check import check_measured, check_named
from pipeline.config import EndpointBackend, Limits
from pipeline.errors import UserError, make_printable

# The server's own generation config would add these where a request is silent.
AS_ASKED = {"repetition_penalty": 1.0, "top_k": 0}


class Endpoint:
    def __init__(self, cfg: EndpointBackend, policy: Model, knob: str):
        self.cfg, self.policy, self.knob = cfg, policy, knob
        self.text = Chat(policy)
        self.where = cfg.runtime.base_url
        api_client.key_of(knob, cfg.runtime)  # said before a minute is spent
        self._under_way = RequestPool(cfg.runtime.concurrency, cfg.runtime.timeout)
        self._longest: int

    def start(self, model: Model, limits: Limits) -> Self:
        import openai

        card = api_client.card_of(self.knob, self.cfg.runtime, self.cfg.model)
        self._check_context(card, limits)
        self._longest = limits.completion
        self._under_way.open(
            api_client.client(openai, openai.AsyncOpenAI, self.knob, self.cfg.runtime)
        )
        if self.cfg.require_token_ids:
            check_measured(self, model)
        else:
            check_named(self, card)
        return self

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | Failed]:
        return self._under_way.answers(blocks, self._ask)

    async def _ask(self, request: Request) -> Completion | Failed:
        from openai import AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        billed = Billed()
        try:
            choice, billed = await self.choice(request, self._longest)
            if _at_string(request, choice) and not self._holds_stop(request, choice):
                request = replace(request, stop=())
                choice, again = await self.choice(request, self._longest)
                billed += again
        except (AuthenticationError, PermissionDeniedError) as error:
            raise api_client.unaccepted(self.knob, self.cfg.runtime, error.status_code) from None
        except NotFoundError:
            raise UserError(
                f"{self.where}: it no longer serves {self.cfg.model}.\n"
                f"  Serve it again and run the same command: completions that came are kept."
            ) from None
        except (OpenAIError, api_client.Unreadable) as error:
            return Failed(request.sample_id, self.said(error), billed)
        except (
            Exception
        ) as error:  # whatever a reply does to the client, it is the fault of this one alone
            return Failed(
                request.sample_id, f"the reply cannot be read ({type(error).__name__})", billed
            )
        return replace(self._completion(request, choice), billed=billed)

    async def choice(self, request: Request, longest: int) -> tuple[Any, Billed]:
        """The one choice of the server's answer, as it came, and what the server is paid for it."""
        try:
            answer = await self._under_way.client.completions.create(
                **self._parameters(request, longest)
            )
            [choice] = answer.choices
            missing = {
                "text",
                "finish_reason",
            } - choice.model_fields_set  # the client does not look
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise api_client.Unreadable("the answer holds no completion") from None
        if missing:
            raise api_client.Unreadable(f"the answer holds a completion without {min(missing)}")
        return choice, self._billed(getattr(answer, "usage", None), request, choice)

    def _billed(self, usage: Any, request: Request, choice: Any) -> Billed:
        """What was sent and what came, where the server does not count."""
        came = getattr(choice, "token_ids", None) or (
            self.text.spelled(choice.text) if is_text(choice.text) else []
        )
        return Billed(
            api_client.counted(usage, "prompt_tokens", len(request.prompt_token_ids)),
            api_client.counted(usage, "completion_tokens", len(came)),
        )

    def _parameters(self, request: Request, longest: int) -> dict[str, Any]:
        plain = {
            "model": self.cfg.model,
            "prompt": request.prompt_token_ids,
            "max_tokens": longest,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if not self.cfg.require_token_ids:
            return plain  # without stop strings: text that ended at one looks like text that ended by itself
        extra = {
            **AS_ASKED,
            "min_p": request.min_p,
            "stop_token_ids": self.text.stops,
            "return_token_ids": True,
        }
        if request.stop:  # looked for in what the cut reads, special tokens included
            extra |= {"stop": list(request.stop), "skip_special_tokens": False}
        return {
            **plain,
            "logprobs": 0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "extra_body": extra,
        }

    def _completion(self, request: Request, choice: Any) -> Completion | Failed:
        if choice.finish_reason not in ("stop", "length"):
            return Failed(
                request.sample_id,
                f"the server ended it with {make_printable(str(choice.finish_reason), 40)}",
            )
        if not self.cfg.require_token_ids:
            return self._cut_again(request, choice)
        if fault := self.fault(request, choice):
            return Failed(request.sample_id, fault)
        if len(choice.token_ids) > self._longest:
            return Failed(
                request.sample_id,
                f"it has more than the {self._longest} tokens that were asked for",
            )
        logprob = sum(choice.logprobs.token_logprobs)
        whole = not _at_string(request, choice)  # whoever asked cuts before the string
        return Completion(
            request.sample_id,
            choice.token_ids,
            logprob,
            choice.finish_reason if whole else "length",
        )

    def fault(self, request: Request, choice: Any) -> str | None:
        """Why its tokens cannot be taken for those drawn, if so."""
        ids, logprobs = (
            getattr(choice, "token_ids", None),
            choice.logprobs and choice.logprobs.token_logprobs,
        )
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            return "it came without token ids"
        if not all(0 <= token < self.text.size for token in ids):
            return "it came with token ids that the policy's tokenizer does not have"
        if (
            not isinstance(logprobs, list)
            or len(logprobs) != len(ids)
            or not all(map(_is_logprob, logprobs))
        ):
            return "it came without a log-probability for each token"
        if (
            read := getattr(choice, "prompt_token_ids", None)
        ) is not None and read != request.prompt_token_ids:
            return "the server read another prompt than it was given"
        stopped = choice.finish_reason == "stop" and not _at_string(request, choice)
        if stopped and ids[-1] not in self.text.stops:
            return "it was stopped at a token that ends no answer of the policy"
        return None

    def _holds_stop(self, request: Request, choice: Any) -> bool:
        """A server may read a first word with the space before it, and would end where no other backend does."""
        words = self.text.read(getattr(choice, "token_ids", None) or [])
        return any(stop in words for stop in request.stop)

    def _cut_again(self, request: Request, choice: Any) -> Completion | Failed:
        """Text in the policy's own tokens: not those that were drawn, so their log-probability is not known.

        What is longer than was asked for counts as truncated.
        """
        if not is_text(choice.text):
            return Failed(request.sample_id, "the answer holds no text")
        ids = self.text.spelled(choice.text)
        ended = choice.finish_reason == "stop" and len(ids) < self._longest
        whole = [*ids, self.text.end] if ended else ids
        return Completion(request.sample_id, whole, None, "stop" if ended else "length")

    def said(self, error: Exception) -> str:
        import openai

        return api_client.fault(openai, self.cfg.runtime, error)

    def wait(self, work: Any) -> Any:
        return self._under_way.wait(work)

    def _check_context(self, card: dict[str, Any], limits: Limits) -> None:
        theirs, needed = card.get("max_model_len"), limits.prompt + limits.completion
        needed = min(needed, self.text.context or needed)
        if theirs and theirs < needed:
            raise UserError(
                f"{self.where}: it serves {self.cfg.model} with a context of {theirs} tokens, and limits.prompt="
                f"{limits.prompt} with limits.completion={limits.completion} need {needed}.\n"
                f"  Start it with --max-model-len {needed}, or lower the limits."
            )

    def close(self) -> None:
        self._under_way.close()


def _at_string(request: Request, choice: Any) -> bool:
    """Whether it was ended early by a stop string, with all tokens up to where that is complete."""
    return choice.finish_reason == "stop" and getattr(choice, "stop_reason", None) in request.stop


def _is_logprob(given: Any) -> bool:
    try:
        return type(given) in (int, float) and math.isfinite(given)
    except OverflowError:
        return False


def is_text(given: Any) -> bool:
    """JSON can hold half a character, which no tokenizer and no file takes."""
    try:
        given.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True
