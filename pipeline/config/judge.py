"""Judges: what they are asked, which engine answers, and what it may cost."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import (
    Block,
    Dtype,
    Local,
    Prices,
    RequestBody,
    Seed,
    Server,
    Share,
    Weights,
)
from pipeline.config.sample import VllmRuntime

# Becomes a part of the names of scorers and inputs.
Name = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
Column = Annotated[str, Field(min_length=1)]  # of the prompts


class ServiceRuntime(Server):
    prices: Prices | None
    max_requests: PositiveInt | None
    max_cost: PositiveFloat | None

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError(
                "max_cost needs prices; give prices={input: …, output: …} per million tokens"
            )
        return self


class EndpointEngine(Block):
    kind: Literal["endpoint"]
    model: str
    revision: str | None
    dialect: Literal["plain", "openai", "vllm"]
    probabilities: bool
    temperature: NonNegativeFloat | None
    max_tokens: PositiveInt
    body: RequestBody
    batch: bool
    runtime: ServiceRuntime

    @property
    def outside_identity(self) -> frozenset[str]:
        """By batch or one by one, the same model answers the same request."""
        return frozenset({"batch"})


class AnthropicEngine(Block):
    kind: Literal["anthropic"]
    model: str
    revision: str | None
    temperature: NonNegativeFloat | None
    max_tokens: PositiveInt
    body: RequestBody
    batch: bool
    runtime: ServiceRuntime

    @property
    def outside_identity(self) -> frozenset[str]:
        """By batch or one by one, the same model answers the same request."""
        return frozenset({"batch"})


class VllmEngine(Block):
    kind: Literal["vllm"]
    model: Weights
    revision: str | None
    remote_code: bool
    dtype: Dtype
    max_length: PositiveInt
    max_tokens: PositiveInt
    template_kwargs: dict[str, JsonValue]
    runtime: VllmRuntime

    @property
    def batch(self) -> Literal[False]:
        return False


EngineConfig = Annotated[
    EndpointEngine | AnthropicEngine | VllmEngine,
    Field(discriminator="kind"),
]


class JudgeRuntime(Block):
    verdicts: Path


class Judge(Block):
    """What every judge has, whatever it compares, scores or searches."""

    engine: EngineConfig
    template: Local
    form: Literal["word", "json"]
    strip_reasoning: bool
    seed: Seed
    runtime: JudgeRuntime

    @model_validator(mode="after")
    def _check_max_tokens(self) -> Self:
        if self.form == "json" and self.engine.max_tokens < 64:
            raise ValueError(
                "form=json writes a reason before its verdict:"
                f" engine.max_tokens={self.engine.max_tokens} would cut it off; give 500 or more"
            )
        return self


class AnswerJudge(Judge):
    """A judge of answers, which may see each prompt's reference answer."""

    reference_column: Column | None
    reference_template: Local
    without_reference: Literal["skip", "judge"]

    @property
    def outside_identity(self) -> frozenset[str]:
        """Without a reference nothing is read by its template."""
        if self.reference_column is None:
            return frozenset({"reference_column", "reference_template", "without_reference"})
        return frozenset()

    @property
    def required_columns(self) -> list[str]:
        """The prompt columns that this judge needs."""
        return [self.reference_column] if self.reference_column else []


class RubricScale(Block):
    """Single digits, so that each score is one token whose probability can be read."""

    low: Annotated[int, Field(ge=0, le=9)]
    high: Annotated[int, Field(ge=0, le=9)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"low={self.low} is not below high={self.high}: a scale has at least two scores"
            )
        return self


class RubricScorer(AnswerJudge):
    kind: Literal["rubric"]
    criteria: dict[Name, str | None]
    rubric_column: Column | None
    scale: RubricScale
    gold: bool

    @property
    def active_criteria(self) -> dict[str, str]:
        """The criteria of every prompt; none where each prompt has its own rubric."""
        if self.rubric_column:
            return {}
        return {name: text for name, text in self.criteria.items() if text}

    @property
    def outside_identity(self) -> frozenset[str]:
        return super().outside_identity | {"criteria" if self.rubric_column else "rubric_column"}

    @property
    def required_columns(self) -> list[str]:
        return [*super().required_columns, *([self.rubric_column] if self.rubric_column else [])]

    @model_validator(mode="after")
    def _check_criteria(self) -> Self:
        if not self.active_criteria and not self.rubric_column:
            raise ValueError(
                "criteria is empty: a rubric asks about at least one criterion;"
                " give criteria.NAME='what is good', or rubric_column=COLUMN of the prompts"
            )
        return self


class PairwiseJudge(AnswerJudge):
    """What a judge of two answers has."""

    levels: Literal[3, 5]

    @property
    def outside_identity(self) -> frozenset[str]:
        return super().outside_identity | ({"levels"} if self.levels == 3 else frozenset())


class PairwiseScorer(PairwiseJudge):
    kind: Literal["pairwise"]
    opponents: PositiveInt | None
    gold: bool


class DuelConfig(PairwiseJudge):
    max_failed: Share
