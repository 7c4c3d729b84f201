"""How models are examined, which of them goes on, and what the report says of it."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block, Local, Seed
from pipeline.config.judge import DuelConfig, Name
from pipeline.config.models import OtherModel
from pipeline.config.sample import ANSWER, SampleConfig, SampleRequest, Turn
from pipeline.config.score import ReferenceConfig, ScoreConfig

# Rows of the table that are SFT drawn once more.
CONTROL, PROMPTED, BEST_OF_PREFIX = "control", "prompted", "best-of-"
RESERVED_NAMES = "base", "sft", CONTROL, PROMPTED


class PromptedBaseline(Block):
    """What SFT is shown beside the prompt: is training worth it, or would a word have done?"""

    system: Annotated[str, Field(min_length=1)] | None
    few_shot: list[Turn]


class ChatConfig(Block):
    """A set of questions of prompts.evaluation, asked of every model of the table."""

    turns: PositiveInt
    score: ScoreConfig | None
    duels: dict[Name, DuelConfig]


class ExamConfig(Block):
    split: Literal["test", "dev"]
    sample: SampleConfig
    score: ScoreConfig
    dev_score: ScoreConfig | None
    refer: ReferenceConfig
    duels: dict[Name, DuelConfig]
    control: bool
    best_of: Annotated[int, Field(ge=2)] | None
    prompted: PromptedBaseline | None
    others: dict[Name, OtherModel]
    chats: dict[Name, ChatConfig]

    @property
    def gold_scorers(self) -> list[str]:
        """The scorers that never made pairs."""
        return [name for name, scorer in self.score.scorers.items() if scorer.gold]

    def variant_requests(self) -> Iterator[tuple[str, SampleRequest]]:
        """SFT once more, under the row's name: nothing but answers, in seeds of their own."""
        if self.control:
            yield CONTROL, self.sample.request_answers(CONTROL)
        if self.best_of:
            yield (
                f"{BEST_OF_PREFIX}{self.best_of}",
                self.sample.request_answers("best-of", n=self.best_of),
            )
        if self.prompted:
            yield PROMPTED, self.sample.request_answers(PROMPTED, **dict(self.prompted))

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if taken := [
            name
            for name in self.others
            if name in RESERVED_NAMES or name.startswith(("round-", BEST_OF_PREFIX))
        ]:
            raise ValueError(
                f"others.{taken[0]}: the table has a row of that name already. Give it another name"
            )
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if ANSWER not in self.sample.settings:
            raise ValueError(
                f"sample.settings: scorers and judges read the setting {ANSWER}. Name one of them so"
            )
        if self.sample.settings[ANSWER].n > 1 and (
            long := [name for name, of in self.chats.items() if of.turns > 1]
        ):
            raise ValueError(
                f"chats.{long[0]}: of several answers to a turn, none is the one that the next turn follows."
                f" Give sample.settings.{ANSWER}.n=1, or chats.{long[0]}.turns=1"
            )
        if self.best_of and self.sample.settings[ANSWER].temperature == 0:
            raise ValueError(
                f"best_of={self.best_of}: at sample.settings.{ANSWER}.temperature=0 all answers are the same."
                f" Give best_of=null, or sample.settings.{ANSWER}.temperature=0.7"
            )
        if self.prompted and not (self.prompted.system or self.prompted.few_shot):
            raise ValueError(
                "prompted: nothing is shown beside the prompt. Give system or few_shot, or prompted=null"
            )
        return self


class GateConfig(Block):
    scorer: str
    kl_budget: PositiveFloat | None
    min_gain: NonNegativeFloat


class EvaluateConfig(Block):
    scorer: str
    slices: list[str]
    labels: dict[Name, Local]
    level: Annotated[float, Field(gt=0, lt=1)]
    retention: dict[str, NonNegativeFloat]
    resamples: Annotated[int, Field(ge=2)]
    seed: Seed

    def with_scorers(self, training: str | None, gold: list[str]) -> "Evaluation":
        return Evaluation(**dict(self), training=training, gold=gold)


class Evaluation(EvaluateConfig):
    """The user's block with what the rest of the config says of its scorers."""

    training: (
        str | None
    )  # the scorer that made pairs; None where others did: people, demonstrations
    gold: list[str]  # those that never made any
