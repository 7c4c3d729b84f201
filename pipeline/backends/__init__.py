"""Backends generate completions: one Protocol, one `match`. Token ids go in, token ids come out.

A backend knows nothing about prompts or shards.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from pipeline.artifacts import Model
from pipeline.config import (
    AnswersFile,
    BackendConfig,
    EndpointBackend,
    Limits,
    ScriptedBackend,
    Seeded,
    ServedModel,
    TextModel,
    TransformersBackend,
    VllmBackend,
)

Message = dict[str, str]
# Receives the number of tokens that each unfinished completion has so far, by sample id.
OnTokens = Callable[[Mapping[str, int]], None]
COUNT_EVERY = 1.0  # seconds between two calls of OnTokens


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request for one completion. Its own seed makes the result independent of the batch."""

    sample_id: str
    prompt_token_ids: list[int]
    temperature: float  # 0 is greedy
    top_p: float
    seed: int
    min_p: float = 0.0  # applied before top_p, after temperature
    stop: tuple[str, ...] = ()  # an engine may end here to save tokens; the caller makes the cut
    messages: tuple[Message, ...] = ()  # the prompt as text, for a model behind a chat API
    needs_logprob: bool = True  # without this a backend may leave it out, to be faster


@dataclass(frozen=True, slots=True)
class BilledTokens:
    """Tokens that a server charges for one completion, by its own count, over all its requests."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "BilledTokens") -> "BilledTokens":
        return BilledTokens(self.read + other.read, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Completion:
    sample_id: str
    token_ids: list[int]  # with the stop token that ended it, if one did
    # Sum over token_ids, before temperature, min_p and top_p. None if these ids were not sampled,
    # or if the request does not need it.
    logprob: float | None
    finish_reason: Literal["stop", "length"]
    text: str | None = None  # as received, where the ids only measure its length
    billed: BilledTokens = BilledTokens()
    is_retokenised: bool = False  # whether the ids are the policy's for a text, not those sampled


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that a server did not complete within its retries."""

    sample_id: str
    reason: str
    billed: BilledTokens = BilledTokens()


class PromptEncoder(Protocol):
    """Turns messages into token ids and knows the context length."""

    @property
    def context(self) -> int | None:
        """The model's context length in tokens. None if the model states no limit."""
        ...

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]: ...


class ChatTokenizer(PromptEncoder, Protocol):
    """Turns messages into token ids and back. It needs no engine."""

    def decode(self, completion: Completion) -> str: ...

    def decode_all(self, completions: list[Completion]) -> list[str]: ...

    def decode_raw(self, ids: list[int]) -> str:
        """Every token as text, special tokens included."""
        ...

    def check_prompt_prefix(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        """Refuse a prompt that renders differently once an answer follows: it cannot be paired."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """The tokens of plain text, with nothing added before or after."""
        ...

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        ...

    def __hash__(self) -> int:
        """By identity, so that results can be cached per tokenizer."""
        ...


class TrainedTokenizer(ChatTokenizer, Protocol):
    """Of a model that trains on answers which it did not sample."""

    def encode_answer(
        self, messages: list[Message], text: str, kwargs: dict[str, Any]
    ) -> list[int]: ...


class Backend(Protocol):
    """Call `start` once, then `generate`.

    `model` has an adapter only if this backend can run it unmerged (`lora_support`).
    """

    @property
    def tokenizer(self) -> ChatTokenizer: ...

    def start(self, model: Model, limits: Limits) -> Self: ...

    def generate(
        self, blocks: Iterable[list[CompletionRequest]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | FailedRequest]:
        """Yield completions as they finish, in any order. Take the next block when there is room.

        Backends that run an engine here call `on_tokens` now and then for unfinished completions.
        """
        ...

    def close(self) -> None: ...


def open_backend(
    cfg: BackendConfig | TextModel,
    policy: Model,
    knob: str = "sample",
    seeded: Seeded = "auto",
    engine_seed: int = 0,
) -> Backend:
    """`knob` is the config path of the sampling block, used in error messages.

    vLLM alone can draw without a seed for each request: then `engine_seed` serves all of them.
    """
    match cfg:
        case VllmBackend():
            from pipeline.backends.vllm import VllmSampler

            return VllmSampler(cfg, policy, f"{knob}.backend", seeded, engine_seed)
        case TransformersBackend():
            from pipeline.backends.transformers import TransformersSampler

            return TransformersSampler(cfg, policy)
        case EndpointBackend():
            from pipeline.backends.endpoint import EndpointSampler

            return EndpointSampler(cfg, policy, f"{knob}.backend")
        case ServedModel():
            from pipeline.backends.chat_api import ChatApiSampler

            return ChatApiSampler(cfg, policy, knob)
        case AnswersFile():
            from pipeline.backends.answers import AnswersReader

            return AnswersReader(cfg, policy, knob)
        case ScriptedBackend():
            from pipeline.backends.scripted import ScriptedSampler

            return ScriptedSampler(cfg)
