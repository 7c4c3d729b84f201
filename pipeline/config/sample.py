"""What is drawn from a policy, and by which backend."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.block import Block, Dtype, Limits, Share, Workers


class VllmRuntime(Block):
    memory: Share
    cpu_cache_gib: PositiveInt
    max_sequences: PositiveInt
    tensor_parallel: PositiveInt


class VllmBackend(Block):
    kind: Literal["vllm"]
    dtype: Dtype
    enforce_eager: bool | None
    prefix_caching: bool | None
    runtime: VllmRuntime


class Batch(Block):
    batch: PositiveInt


class TransformersBackend(Block):
    kind: Literal["transformers"]
    dtype: Dtype
    runtime: Batch


class ScriptedBackend(Block):
    """No model at all: completions are a function of prompt and seed. For tests of everything around a backend."""

    kind: Literal["scripted"]
    vocabulary: Annotated[int, Field(ge=2)]


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address such as http://localhost:8000/v1 was expected")
    if parts.username or parts.password or parts.query:
        raise ValueError("an address carries no key: name its environment variable in api_key_env")
    return url


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("the name of an environment variable was expected, never the key itself")
    return name


class Prices(Block):
    input: NonNegativeFloat
    output: NonNegativeFloat


class EndpointRuntime(Block):
    base_url: Annotated[str, AfterValidator(_address)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None
    requests: PositiveInt
    max_retries: NonNegativeInt
    timeout: PositiveFloat
    tolerance: PositiveFloat
    prices: Prices


class EndpointBackend(Block):
    """A server of the user's naming. Where it stands is no identity; what it is asked for is."""

    kind: Literal["endpoint"]
    model: Annotated[str, Field(min_length=1)]
    require_token_ids: bool
    runtime: EndpointRuntime


BackendConfig = Annotated[
    VllmBackend | TransformersBackend | EndpointBackend | ScriptedBackend, Field(discriminator="kind")
]


class Setting(Block):
    n: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _equal_samples(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError(
                f"n={self.n} at temperature=0 draws the same completion {self.n} times;"
                " set n=1, or a temperature above 0"
            )
        return self


class SampleRuntime(Block):
    blocks: PositiveInt
    max_failed: Share
    workers: Workers


class SampleConfig(Block):
    settings: Annotated[dict[str, Setting], Field(min_length=1)]
    per_round: PositiveInt | None
    limits: Limits
    template_kwargs: dict[str, JsonValue]
    seed: int
    shard: PositiveInt
    backend: BackendConfig
    runtime: SampleRuntime

    def draw(self, purpose: str, round: int = 1, wave: int = 0) -> "Draw":
        return Draw(**dict(self), purpose=purpose, round=round, wave=wave)


class Draw(SampleConfig):
    """One sampling run: the user's block and which draw of it this is, so that no two draws share their seeds."""

    purpose: str
    round: PositiveInt
    wave: NonNegativeInt

    def short_of(self, rows: int) -> str | None:
        """What to say when so many prompts do not last for all rounds."""
        if self.per_round is None or rows >= (needed := self.per_round * max(self.runtime.blocks, self.round)):
            return None
        rounds = max(self.runtime.blocks, self.round)
        fits = rows // rounds
        return (
            f"sample.per_round={self.per_round}: rounds={rounds} need {needed} prompts, and there are {rows}.\n"
            f"  Give {f'sample.per_round={fits} or less, ' if fits else ''}fewer rounds, more prompts, or"
            f" sample.per_round=null, which draws from all prompts in every round."
        )
