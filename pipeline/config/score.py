"""What marks completions, and the log-probabilities that a reference or an exam needs."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config.block import Block, Dtype, Function, Local, Share
from pipeline.errors import nearest


class RuleScorer(Block):
    kind: Literal["rules"]
    rule: Literal["playground"]
    gold: bool


class RegexScorer(Block):
    kind: Literal["regex"]
    pattern: str
    whole: bool
    wanted: bool
    gold: bool

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern} is no regular expression: {error}") from error
        return self


class JsonScorer(Block):
    kind: Literal["json"]
    schema_file: Local | None
    fenced: bool
    gold: bool


class LengthScorer(Block):
    kind: Literal["length"]
    unit: Literal["tokens", "words", "characters"]
    least: NonNegativeInt
    most: PositiveInt
    gold: bool

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least={self.least} is above most={self.most}: no length lies between them")
        return self


class LanguageScorer(Block):
    kind: Literal["language"]
    languages: Annotated[list[str], Field(min_length=1)]
    gold: bool


class Workers(Block):
    workers: Literal["auto"] | PositiveInt


class IfevalScorer(Block):
    kind: Literal["ifeval"]
    reading: Literal["strict", "loose"]
    gold: bool
    runtime: Workers


class MathScorer(Block):
    kind: Literal["math"]
    column: str
    seconds: PositiveInt
    gold: bool
    runtime: Workers


class CodeLimits(Block):
    seconds: PositiveFloat
    cpu_seconds: PositiveInt
    memory_mb: PositiveInt
    file_mb: PositiveInt


class CodeScorer(Block):
    kind: Literal["code"]
    column: str
    allow_code_execution: bool
    network: bool
    limits: CodeLimits
    gold: bool
    runtime: Workers

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        if not self.allow_code_execution:
            raise ValueError(
                "this scorer runs code that a model wrote, on this machine, and that was not allowed."
                " Give allow_code_execution=true where nothing can be harmed"
            )
        return self


class FunctionScorer(Block):
    kind: Literal["function"]
    function: Function
    gold: bool


class LabelsScorer(Block):
    kind: Literal["labels"]
    path: Local
    combine: Literal["majority", "mean"]
    min_agreement: Share
    gold: bool


class EnsembleScorer(Block):
    kind: Literal["ensemble"]
    of: Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    combine: Literal["mean_rank", "mean_z", "min", "majority"]
    gates: dict[str, float]
    gold: bool

    @property
    def members(self) -> list[str]:
        return sorted({*self.of, *self.gates})

    @property
    def within_prompt(self) -> bool:
        """Whether its scores only say how a prompt's answers compare: their mean is the same for any model."""
        return self.combine != "min"

    @model_validator(mode="after")
    def _no_idle_weight(self) -> Self:
        if self.combine == "min" and set(self.of.values()) != {1.0}:
            raise ValueError("combine=min takes the lowest score and knows no weights. Give each member the weight 1")
        return self


# Scores that are functions of one answer and its prompt's columns.
CheckScorer = (
    RuleScorer
    | RegexScorer
    | JsonScorer
    | LengthScorer
    | LanguageScorer
    | IfevalScorer
    | MathScorer
    | CodeScorer
)  # fmt: skip

ScorerConfig = Annotated[
    CheckScorer  # those above, each a line
    | FunctionScorer
    | LabelsScorer
    | EnsembleScorer,
    Field(discriminator="kind"),
]  # fmt: skip


class ScoreConfig(Block):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)]
    max_failed: Share

    @model_validator(mode="after")
    def _ensembles_have_members(self) -> Self:
        if faults := list(_unfit_ensembles(self.scorers)):
            raise ValueError("\n".join(faults))
        return self


def _unfit_ensembles(scorers: dict[str, Any]) -> Iterator[str]:
    single = [name for name, scorer in scorers.items() if scorer.kind != "ensemble"]
    for name, ensemble in scorers.items():
        for member in ensemble.members if ensemble.kind == "ensemble" else []:
            if member not in single:
                yield f"scorers.{name}: {member} is no single scorer beside it. {nearest(member, single)}"
            elif scorers[member].gold and not ensemble.gold:
                yield f"scorers.{name}: its member {member} is gold, so it has to be gold as well"


class ReferRuntime(Block):
    batch_tokens: PositiveInt


class ReferConfig(Block):
    dtype: Dtype
    runtime: ReferRuntime
