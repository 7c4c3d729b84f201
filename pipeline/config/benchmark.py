"""Published benchmarks that models are evaluated on."""

from typing import Annotated, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Block, Local, Seed
from pipeline.config.rule_scorers import CodeExecution
from pipeline.config.sample import TransformersBackend, VllmBackend


class BenchmarkConfig(Block):
    task: Annotated[str, Field(min_length=1)]
    tasks: Local | None
    data: Local | dict[str, Local] | None
    revision: str | None
    metric: Annotated[str, Field(pattern=r"^[^,]+,[^,]+$")]  # as lm-eval writes them: acc,none
    few_shot: NonNegativeInt | None
    limit: PositiveInt | None
    chat: bool
    template_kwargs: dict[str, JsonValue]
    thinks_until: str | None
    max_new_tokens: PositiveInt | None
    code: CodeExecution | None
    seed: Seed
    backend: Annotated[TransformersBackend | VllmBackend, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check_revision(self) -> Self:
        if self.data is not None and self.revision is not None:
            raise ValueError(
                "data is local, and revision is a commit of the hub's dataset. Leave one null"
            )
        return self
