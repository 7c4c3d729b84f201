"""What is drawn from a policy, and by which backend."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

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


BackendConfig = Annotated[VllmBackend | TransformersBackend | ScriptedBackend, Field(discriminator="kind")]


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
