"""Scorers that are functions of one answer and its prompt's columns."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block, Local, Workers


class CheckRuntime(Block):
    workers: Workers


class RuleScorer(Block):
    kind: Literal["rules"]
    rule: Literal["playground", "unseen_constraints"]
    gold: bool

    @property
    def required_columns(self) -> list[str]:
        """The prompt columns that this scorer needs."""
        return ["constraints"]


class RegexScorer(Block):
    kind: Literal["regex"]
    pattern: str
    whole: bool
    wanted: bool
    gold: bool

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern={self.pattern} is not a regular expression: {error}"
            ) from error
        return self


class JsonScorer(Block):
    kind: Literal["json"]
    schema_file: Local | None
    calls: str | None
    fenced: bool
    gold: bool

    @property
    def outside_identity(self) -> frozenset[str]:
        """Without a column of calls it scores as it does without this knob."""
        return frozenset() if self.calls else frozenset({"calls"})

    @property
    def required_columns(self) -> list[str]:
        return [self.calls] if self.calls else []

    @model_validator(mode="after")
    def _check_aim(self) -> Self:
        if self.calls and self.schema_file:
            raise ValueError(
                "schema_file and calls: it compares with a schema or with expected calls."
                " Give schema_file=null or calls=null, and another scorer for the other"
            )
        return self


class LengthScorer(Block):
    kind: Literal["length"]
    unit: Literal["tokens", "words", "characters"]
    min: NonNegativeInt
    max: PositiveInt
    gold: bool

    @model_validator(mode="after")
    def _check_band(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}: no length fits between them")
        return self


class LanguageScorer(Block):
    kind: Literal["language"]
    languages: Annotated[list[str], Field(min_length=1)]
    gold: bool


class IfevalScorer(Block):
    kind: Literal["ifeval"]
    reading: Literal["strict", "loose"]
    gold: bool
    runtime: CheckRuntime

    @property
    def required_columns(self) -> list[str]:
        return ["instruction_id_list", "kwargs"]


class MathScorer(Block):
    kind: Literal["math"]
    column: str
    seconds: PositiveInt
    gold: bool
    runtime: CheckRuntime

    @property
    def required_columns(self) -> list[str]:
        return [self.column]


class CodeLimits(Block):
    seconds: PositiveFloat
    cpu_seconds: PositiveInt
    memory_mb: PositiveInt
    file_mb: PositiveInt


class CodeExecution(Block):
    """A model's code on this machine: allowed by the user, and under limits."""

    allow_code_execution: bool
    network: bool
    limits: CodeLimits

    @model_validator(mode="after")
    def _check_permission(self) -> Self:
        if not self.allow_code_execution:
            raise ValueError(
                "this runs a model's code on this machine, which is not allowed yet."
                " Give allow_code_execution=true where that can do no harm"
            )
        return self


class CodeScorer(CodeExecution):
    kind: Literal["code"]
    column: str
    gold: bool
    runtime: CheckRuntime

    @property
    def required_columns(self) -> list[str]:
        return [self.column]


class RefusalScorer(Block):
    kind: Literal["refusal"]
    refused_by: str | None
    threshold: float
    gold: bool


CheckScorer = (
    RuleScorer
    | RegexScorer
    | JsonScorer
    | LengthScorer
    | LanguageScorer
    | IfevalScorer
    | MathScorer
    | CodeScorer
    | RefusalScorer
)  # fmt: skip
