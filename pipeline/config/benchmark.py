"""Published benchmarks that a model is examined by."""

from typing import Annotated

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from pipeline.config.block import Block, Local
from pipeline.config.sample import TransformersBackend, VllmBackend


class BenchmarkConfig(Block):
    task: Annotated[str, Field(min_length=1)]
    tasks: Local | None
    data: Local | dict[str, Local] | None
    metric: Annotated[str, Field(pattern=r"^[^,]+,[^,]+$")]  # as lm-eval writes them: acc,none
    few_shot: NonNegativeInt | None
    limit: PositiveInt | None
    chat: bool
    template_kwargs: dict[str, JsonValue]
    thinks_until: str | None
    max_new_tokens: PositiveInt | None
    seed: int
    backend: Annotated[TransformersBackend | VllmBackend, Field(discriminator="kind")]
