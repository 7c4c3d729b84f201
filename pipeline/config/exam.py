"""How models are examined, and what the report says of it."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from pipeline.config.block import Block
from pipeline.config.judge import DuelConfig, Name
from pipeline.config.sample import ANSWER, Draw, SampleConfig, Turn
from pipeline.config.score import ReferConfig, ScoreConfig

# Rows of the table that are SFT drawn once more.
CONTROL, PROMPTED, BEST_OF = "control", "prompted", "best-of-"


class Prompted(Block):
    """What SFT is shown beside the prompt: is training worth it, or would a word have done?"""

    system: Annotated[str, Field(min_length=1)] | None
    few_shot: list[Turn]


class ExamConfig(Block):
    split: Literal["test", "dev"]
    sample: SampleConfig
    score: ScoreConfig
    dev_score: ScoreConfig | None
    refer: ReferConfig
    duels: dict[Name, DuelConfig]
    control: bool
    best_of: Annotated[int, Field(ge=2)] | None
    prompted: Prompted | None

    @property
    def gold(self) -> list[str]:
        """The scorers that never made pairs."""
        return [name for name, scorer in self.score.scorers.items() if scorer.gold]

    def rows(self) -> Iterator[tuple[str, Draw]]:
        """SFT once more, under the row's name: nothing but answers, in seeds of their own."""
        if self.control:
            yield CONTROL, self.sample.answers(CONTROL)
        if self.best_of:
            yield f"{BEST_OF}{self.best_of}", self.sample.answers("best-of", n=self.best_of)
        if self.prompted:
            yield PROMPTED, self.sample.answers(PROMPTED, **dict(self.prompted))

    @model_validator(mode="after")
    def _rows_can_be_drawn(self) -> Self:
        if ANSWER not in self.sample.settings:
            raise ValueError(f"sample.settings: scorers and judges read the setting {ANSWER}. Name one of them so")
        if self.best_of and self.sample.settings[ANSWER].temperature == 0:
            raise ValueError(
                f"best_of={self.best_of}: at temperature=0 all answers are the same."
                f" Give best_of=null, or sample.settings.{ANSWER}.temperature=0.7"
            )
        if self.prompted and not (self.prompted.system or self.prompted.few_shot):
            raise ValueError("prompted: nothing is shown beside the prompt. Give system or few_shot, or prompted=null")
        return self


class EvaluateConfig(Block):
    scorer: str
    slices: list[str]
    level: Annotated[float, Field(gt=0, lt=1)]
    retention: dict[str, NonNegativeFloat]
    resamples: PositiveInt
    seed: int

    def told(self, training: str, gold: list[str]) -> "Evaluation":
        return Evaluation(**dict(self), training=training, gold=gold)


class Evaluation(EvaluateConfig):
    """The user's block with what the rest of the config says of its scorers."""

    training: str  # the scorer that made the pairs
    gold: list[str]  # those that never made any
