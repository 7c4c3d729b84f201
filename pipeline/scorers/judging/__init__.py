"""Judges: each request is sent once, by one engine, and its response is kept for good.

From request to row: `template` builds a `JudgeRequest`; `cached_judge` finds its `Response` in
`verdict_cache` or asks an engine for it; `parsing` reads the `Verdict` in it; `pairwise` makes one
verdict of a `Comparison` in both orders; the scorers in `judge` turn verdicts into a `Score`.
Engines know services and models, and nothing of verdicts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.config import AnthropicEngine, EndpointEngine, EngineConfig, VllmEngine
from pipeline.errors import UserError

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class JudgeRequest:
    """One request to a judge.

    `labels` are all that it may answer. Where their first characters differ, the probabilities of
    the reply's first token are theirs.
    """

    messages: tuple[Message, ...]
    labels: tuple[str, ...]
    texts_hash: str  # of the judged texts, in whichever order
    order: str  # of two answers: `forth` or `back`


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: the text, or a fault.

    `first_token` has its first token's probabilities, where the engine gives them.

    A response without text is not a verdict: it is counted, and requested again next time.
    """

    text: str | None
    first_token: Mapping[str, float] | None = None
    model: str = ""  # as the engine names itself
    tokens_in: int = 0
    tokens_out: int = 0
    fault: str = ""
    is_rejected: bool = False  # the service calls the request itself wrong, whoever sends it


OnResponse = Callable[[JudgeRequest, Response], None]


class JudgeEngine(Protocol):
    """`send_requests` takes a request whenever it has room for one.

    It calls `on_response` as responses arrive, in any order.
    """

    def send_requests(self, requests: Iterable[JudgeRequest], on_response: OnResponse) -> None: ...

    def close(self) -> None: ...


PACKAGES = {"vllm": "vllm", "endpoint": "openai", "anthropic": "anthropic"}


def not_installed_error(cfg: EngineConfig, knob: str, error: ImportError) -> UserError:
    match cfg:
        case EndpointEngine():
            reason = f"the package openai is not installed ({error}).\n  Type `make install`."
        case AnthropicEngine():
            reason = (
                f"its client is an extra and is not installed ({error}).\n"
                "  Type `.venv/bin/pip install anthropic`,"
                f" or judge through another engine: engine@{knob}=endpoint"
            )
        case VllmEngine():
            reason = (
                f"vLLM cannot be imported here ({error}).\n"
                f"  Run `make install`, or judge through a server: engine@{knob}=endpoint"
            )
    return UserError(f"engine@{knob}={cfg.kind}: {reason}")


def open_engine(cfg: EngineConfig, form: str, knob: str) -> JudgeEngine:
    """`knob`: where the user's config has this engine."""
    match cfg:
        case EndpointEngine():
            from pipeline.scorers.judging.endpoint import open_endpoint

            return open_endpoint(cfg, form, knob)
        case AnthropicEngine():
            from pipeline.scorers.judging.anthropic import open_anthropic

            return open_anthropic(cfg, knob)
        case VllmEngine():
            from pipeline.scorers.judging.vllm import VllmJudge

            return VllmJudge(cfg, form, knob)
