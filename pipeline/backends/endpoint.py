"""Any OpenAI-compatible server that the user names: our token ids go in, one request per seed.

The `openai` client alone retries; a request it gives up on is a FailedRequest. A rejected key or a
missing model stops the run.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, Self

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
from pipeline.backends.in_flight import RequestPool
from pipeline.backends.policy_check import check_by_logprobs, check_by_name
from pipeline.config import EndpointBackend, Limits
from pipeline.errors import UserError, make_printable

# The server's own generation config would set these where a request does not.
NEUTRAL_SAMPLING = {"repetition_penalty": 1.0, "top_k": 0}


class EndpointSampler:
    def __init__(self, cfg: EndpointBackend, policy: Model, knob: str):
        self.cfg, self.policy, self.knob = cfg, policy, knob
        self.tokenizer = ModelTokenizer(policy)
        self.url = cfg.runtime.base_url
        api_client.read_key(knob, cfg.runtime)  # a missing key is refused before a minute is spent
        self._pool = RequestPool(cfg.runtime.concurrency, cfg.runtime.timeout)
        self._max_tokens: int

    def start(self, model: Model, limits: Limits) -> Self:
        import openai

        card = api_client.fetch_model_card(self.knob, self.cfg.runtime, self.cfg.model)
        self._check_context(card, limits)
        self._max_tokens = limits.completion
        self._pool.open(
            api_client.make_client(openai, openai.AsyncOpenAI, self.knob, self.cfg.runtime)
        )
        if self.cfg.require_token_ids:
            check_by_logprobs(self, model)
        else:
            check_by_name(self, card)
        return self

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | FailedRequest]:
        return self._pool.run_requests(blocks, self._request_completion)

    async def _request_completion(self, request: CompletionRequest) -> Completion | FailedRequest:
        from openai import AuthenticationError, NotFoundError, OpenAIError, PermissionDeniedError

        billed = BilledTokens()
        try:
            choice, billed = await self.request_choice(request, self._max_tokens)
            if _ended_at_stop_string(request, choice) and not self._contains_stop(request, choice):
                request = replace(request, stop=())
                choice, billed_again = await self.request_choice(request, self._max_tokens)
                billed += billed_again
        except (AuthenticationError, PermissionDeniedError) as error:
            raise api_client.make_key_error(
                self.knob, self.cfg.runtime, error.status_code
            ) from None
        except NotFoundError:
            raise UserError(
                f"{self.url}: it no longer serves {self.cfg.model}.\n"
                "  Serve it again and run the same command; finished completions are kept."
            ) from None
        except (OpenAIError, api_client.UnreadableReply) as error:
            return FailedRequest(request.sample_id, self.describe_error(error), billed)
        except Exception as error:  # a reply that breaks the client fails its own request alone
            reason = f"the reply cannot be read ({type(error).__name__})"
            return FailedRequest(request.sample_id, reason, billed)
        return replace(self._parse_completion(request, choice), billed=billed)

    async def request_choice(
        self, request: CompletionRequest, max_tokens: int
    ) -> tuple[Any, BilledTokens]:
        """The one choice of the server's reply, unchanged, and the tokens that the server bills."""
        try:
            reply = await self._pool.client.completions.create(
                **self._build_parameters(request, max_tokens)
            )
            [choice] = reply.choices
            # The client does not check these.
            missing = {"text", "finish_reason"} - choice.model_fields_set
        except (AttributeError, TypeError, ValueError, RecursionError):
            raise api_client.UnreadableReply("the answer holds no completion") from None
        if missing:
            raise api_client.UnreadableReply(
                f"the answer holds a completion without {min(missing)}"
            )
        return choice, self._count_billed(getattr(reply, "usage", None), request, choice)

    def _count_billed(self, usage: Any, request: CompletionRequest, choice: Any) -> BilledTokens:
        """The server's count, or else the tokens that were sent and received."""
        received = getattr(choice, "token_ids", None)
        if not received:
            text = choice.text
            received = self.tokenizer.encode_literal(text) if is_text(text) else []
        return BilledTokens(
            api_client.read_usage(usage, "prompt_tokens", len(request.prompt_token_ids)),
            api_client.read_usage(usage, "completion_tokens", len(received)),
        )

    def _build_parameters(self, request: CompletionRequest, max_tokens: int) -> dict[str, Any]:
        plain = {
            "model": self.cfg.model,
            "prompt": request.prompt_token_ids,
            "max_tokens": max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if not self.cfg.require_token_ids:
            # No stop strings: an end at one cannot be distinguished from EOS.
            return plain
        extra = {
            **NEUTRAL_SAMPLING,
            "min_p": request.min_p,
            "stop_token_ids": self.tokenizer.stop_ids,
            "return_token_ids": True,
        }
        if request.stop:  # searched in the raw text, as our own cut does: special tokens included
            extra |= {"stop": list(request.stop), "skip_special_tokens": False}
        return {
            **plain,
            "logprobs": 0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "extra_body": extra,
        }

    def _parse_completion(
        self, request: CompletionRequest, choice: Any
    ) -> Completion | FailedRequest:
        if choice.finish_reason not in ("stop", "length"):
            quoted = make_printable(str(choice.finish_reason), 40)
            return FailedRequest(request.sample_id, f"the server ended it with {quoted}")
        if not self.cfg.require_token_ids:
            return self._retokenise(request, choice)
        if fault := self.find_fault(request, choice):
            return FailedRequest(request.sample_id, fault)
        if len(choice.token_ids) > self._max_tokens:
            reason = f"it has more than the {self._max_tokens} tokens that were asked for"
            return FailedRequest(request.sample_id, reason)
        logprob = sum(choice.logprobs.token_logprobs)
        # At a stop string the completion is unfinished: the caller cuts before the string.
        cut = _ended_at_stop_string(request, choice)
        return Completion(
            request.sample_id, choice.token_ids, logprob, "length" if cut else choice.finish_reason
        )

    def find_fault(self, request: CompletionRequest, choice: Any) -> str | None:
        """Why its tokens cannot be trusted as those sampled, if so."""
        ids = getattr(choice, "token_ids", None)
        logprobs = choice.logprobs and choice.logprobs.token_logprobs
        prompt_ids = getattr(choice, "prompt_token_ids", None)
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            return "it came without token ids"
        if not all(0 <= token < self.tokenizer.vocabulary_size for token in ids):
            return "it came with token ids that the policy's tokenizer does not have"
        if (
            not isinstance(logprobs, list)
            or len(logprobs) != len(ids)
            or not all(map(_is_logprob, logprobs))
        ):
            return "it came without a log-probability for each token"
        if prompt_ids is not None and prompt_ids != request.prompt_token_ids:
            return "the server read another prompt than it was given"
        stopped = choice.finish_reason == "stop" and not _ended_at_stop_string(request, choice)
        if stopped and ids[-1] not in self.tokenizer.stop_ids:
            return "it was stopped at a token that ends no answer of the policy"
        return None

    def _contains_stop(self, request: CompletionRequest, choice: Any) -> bool:
        """Whether a stop string is in the raw text.

        A server may decode a first word with a space before it, and then stops where no other
        backend does.
        """
        text = self.tokenizer.decode_raw(getattr(choice, "token_ids", None) or [])
        return any(stop in text for stop in request.stop)

    def _retokenise(self, request: CompletionRequest, choice: Any) -> Completion | FailedRequest:
        """Text in the policy's own tokens. They were not sampled, so they have no log-probability.

        A text longer than requested counts as truncated.
        """
        if not is_text(choice.text):
            return FailedRequest(request.sample_id, "the answer holds no text")
        ids = self.tokenizer.encode_literal(choice.text)
        reason: Literal["stop", "length"] = "length"
        if choice.finish_reason == "stop" and len(ids) < self._max_tokens:
            ids, reason = [*ids, self.tokenizer.eos], "stop"
        return Completion(request.sample_id, ids, None, reason, is_retokenised=True)

    def describe_error(self, error: Exception) -> str:
        import openai

        return api_client.describe_error(openai, self.cfg.runtime, error)

    def wait(self, work: Any) -> Any:
        return self._pool.wait(work)

    def _check_context(self, card: dict[str, Any], limits: Limits) -> None:
        served, needed = card.get("max_model_len"), limits.prompt + limits.completion
        needed = min(needed, self.tokenizer.context or needed)
        if served and served < needed:
            raise UserError(
                f"{self.url}: it serves {self.cfg.model} with a context of {served} tokens,"
                f" and limits.prompt={limits.prompt} with limits.completion={limits.completion}"
                f" need {needed}.\n"
                f"  Start it with --max-model-len {needed}, or lower the limits."
            )

    def close(self) -> None:
        self._pool.close()


def _ended_at_stop_string(request: CompletionRequest, choice: Any) -> bool:
    """Whether a stop string ended it; its tokens then reach to where that string is complete."""
    return choice.finish_reason == "stop" and getattr(choice, "stop_reason", None) in request.stop


def _is_logprob(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def is_text(value: Any) -> bool:
    """JSON can hold half a surrogate pair, which no tokenizer and no file accepts."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        return False
    return True
