"""What judges are made of: a question is asked once, by one engine, and what it answered is kept for good.

`engines/` know services and models and nothing of verdicts; `template` writes a question; `court` asks it or finds its
answer in `verdicts`; `duels` makes one verdict of both orders.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.config import AnthropicEngine, EndpointEngine, EngineConfig, VllmEngine
from pipeline.errors import UserError

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One thing asked of a judge. Its `labels` are all it may answer, and differ in their first token."""

    messages: tuple[Message, ...]
    labels: tuple[str, ...]
    texts: str  # the hash of what is judged, in whichever order
    order: str  # of two answers: `forth` or `back`


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the text with its first token's probabilities where the engine gives them, or why there is none.

    A reply without text is no verdict: it is counted, and asked for again next time.
    """

    text: str | None
    first: Mapping[str, float] | None = None
    model: str = ""  # as the engine names itself
    tokens_in: int = 0
    tokens_out: int = 0
    fault: str = ""
    unfit: bool = False  # the question itself was refused, whoever asks it


Hear = Callable[[Question, Reply], None]


class Engine(Protocol):
    """`ask` takes questions when there is room for them and lets hear of replies as they arrive, in any order."""

    def ask(self, questions: Iterable[Question], hear: Hear) -> None: ...

    def close(self) -> None: ...


PACKAGES = {"vllm": "vllm", "endpoint": "openai", "anthropic": "anthropic"}


def not_installed(cfg: EngineConfig, knob: str, error: ImportError) -> UserError:
    match cfg:
        case EndpointEngine():
            said = f"the package openai is not installed ({error}).\n  Type `make install`."
        case AnthropicEngine():
            said = (
                f"its client is an extra and is not installed ({error}).\n  Type `.venv/bin/pip install anthropic`,"
                f" or judge through another engine: engine@{knob}=endpoint"
            )
        case VllmEngine():
            said = (
                f"vLLM cannot be imported here ({error}).\n"
                f"  Run `make install`, or judge through a server: engine@{knob}=endpoint"
            )
    return UserError(f"engine@{knob}={cfg.kind}: {said}")


def open_engine(cfg: EngineConfig, form: str, knob: str) -> Engine:
    """`knob`: where the person's config has this engine."""
    match cfg:
        case EndpointEngine():
            from pipeline.scorers.judging.endpoint import endpoint

            return endpoint(cfg, form, knob)
        case AnthropicEngine():
            from pipeline.scorers.judging.anthropic import anthropic

            return anthropic(cfg, knob)
        case VllmEngine():
            from pipeline.scorers.judging.vllm import Vllm

            return Vllm(cfg, form, knob)
