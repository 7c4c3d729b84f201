"""What draws completions: one Protocol, one `match`. Token ids in, token ids out; it knows no prompts and no shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from pipeline.artifacts import Model
from pipeline.config import (
    BackendConfig,
    EndpointBackend,
    Limits,
    ScriptedBackend,
    ServedModel,
    TransformersBackend,
    VllmBackend,
)

Message = dict[str, str]
OnTokens = Callable[
    [Mapping[str, int]], None
]  # how many tokens each unfinished completion has, by sample id
COUNT_EVERY = 1.0  # seconds between two such counts


@dataclass(frozen=True, slots=True)
class Request:
    """One completion: each has its own seed, so what it becomes does not depend on who is drawn beside it."""

    sample_id: str
    prompt_token_ids: list[int]
    temperature: float  # 0 is greedy
    top_p: float
    seed: int
    min_p: float = 0.0  # before top_p, after temperature
    stop: tuple[
        str, ...
    ] = ()  # an engine may end here to save tokens; the cut is made by whoever asked
    messages: tuple[Message, ...] = ()  # what the ids say, for a model that is asked in words


@dataclass(frozen=True, slots=True)
class Billed:
    """Tokens that a server is paid for, as it counts them: read and written, in every request for one completion."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "Billed") -> "Billed":
        return Billed(self.read + other.read, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Completion:
    sample_id: str
    token_ids: list[int]  # with the stop token that ended it, when one did
    logprob: (
        float | None
    )  # sum over token_ids, before temperature, min_p, top_p; None when ids are not those drawn
    finish_reason: Literal["stop", "length"]
    text: str | None = None  # as it came, where the ids are only its measure
    billed: Billed = Billed()


@dataclass(frozen=True, slots=True)
class Failed:
    """A completion that a server did not give, for all the tries it was granted."""

    sample_id: str
    reason: str
    billed: Billed = Billed()


class Counting(Protocol):
    """Messages to token ids, and how many of them there may be."""

    @property
    def context(self) -> int | None:
        """How many tokens the model can see; None when it names no limit."""
        ...

    def encode(self, messages: list[Message], kwargs: dict[str, Any]) -> list[int]: ...


class Text(Counting, Protocol):
    """Messages to token ids and back; it needs no engine."""

    def decode(self, completion: Completion) -> str: ...

    def read(self, ids: list[int]) -> str:
        """Every token as it is written, special ones included."""
        ...

    def check_kept(self, messages: list[Message], kwargs: dict[str, Any]) -> None:
        """Refuses a prompt that is written otherwise with an answer than alone: no pair can be made of it."""
        ...

    def pieces(self, text: str) -> list[int]:
        """The tokens of plain text, with nothing put before or after."""
        ...

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        ...

    def __hash__(self) -> int:
        """By identity: what one of them reads may be remembered."""
        ...


class Backend(Protocol):
    """`start` once, then `generate`. `model` has an adapter only where this backend runs it as it is (`adapters`)."""

    @property
    def text(self) -> Text: ...

    def start(self, model: Model, limits: Limits) -> Self: ...

    def generate(
        self, blocks: Iterable[list[Request]], on_tokens: OnTokens | None = None
    ) -> Iterator[Completion | Failed]:
        """Completions as they finish, in any order; a block is asked for when there is room for its requests.

        `on_tokens` hears now and then how far the others are, from those that draw here.
        """
        ...

    def close(self) -> None: ...


def open_backend(cfg: BackendConfig | ServedModel, policy: Model, knob: str = "sample") -> Backend:
    """`knob`: where the person's config has the block that draws, for words that name a knob of it."""
    match cfg:
        case VllmBackend():
            from pipeline.backends.vllm import Vllm

            return Vllm(cfg, policy, f"{knob}.backend")
        case TransformersBackend():
            from pipeline.backends.transformers import Transformers

            return Transformers(cfg, policy)
        case EndpointBackend():
            from pipeline.backends.endpoint import Endpoint

            return Endpoint(cfg, policy, f"{knob}.backend")
        case ServedModel():
            from pipeline.backends.chat_api import ByName

            return ByName(cfg, policy, knob)
        case ScriptedBackend():
            from pipeline.backends.scripted import Scripted

            return Scripted(cfg)
