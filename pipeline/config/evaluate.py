"""How models are evaluated, which one the next round starts from, and what the report covers."""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Block, Local, Seed
from pipeline.config.judge import DuelConfig, Name
from pipeline.config.merge import is_merged
from pipeline.config.models import OtherModel
from pipeline.config.sample import ANSWER, SampleConfig, SampleRequest, Turn
from pipeline.config.score import ReferenceConfig, ScoreConfig

# Rows of the report's table that sample the SFT model again.
CONTROL, PROMPTED, BEST_OF_PREFIX = "control", "prompted", "best-of-"
PANEL = "panel"  # in the table of contests: all judges together
RESERVED_NAMES = "base", "sft", CONTROL, PROMPTED


class PromptedBaseline(Block):
    """A system prompt or examples for SFT: does training beat plain prompting?"""

    system: Annotated[str, Field(min_length=1)] | None
    few_shot: list[Turn]


class ChatConfig(Block):
    """A set of questions from prompts.evaluation, asked of every model in the table."""

    turns: PositiveInt
    references: Local | None
    score: ScoreConfig | None
    duels: dict[Name, DuelConfig]


def list_retention_names(chat: str, scorer: str, scorers: Collection[str]) -> list[str]:
    """What evaluate.retention calls a scorer of a chat benchmark, or a criterion of it.

    `chat/scorer`, and `chat` alone for the scorer of the same name, or the only one.
    """
    single, _, criterion = scorer.partition("/")
    names = [f"{chat}/{scorer}"]
    if single == chat or [*scorers] == [single]:
        names.append(f"{chat}/{criterion}" if criterion else chat)
    return names


class VerdictConfig(Block):
    """What the report decides by, and how surely."""

    scorer: str
    slices: list[str]
    labels: dict[Name, Local]
    panel: Literal["majority", "mean"] | None
    level: Annotated[float, Field(gt=0, lt=1)]
    retention: dict[str, NonNegativeFloat]
    resamples: Annotated[int, Field(ge=2)]
    seed: Seed

    @property
    def outside_identity(self) -> frozenset[str]:
        return frozenset() if self.panel else frozenset({"panel"})


class Expectation(Block):
    """A metric as it was published for SFT and for the trained model, in the report's own unit."""

    before: float | None
    after: float | None
    tolerance: NonNegativeFloat
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _check_figures(self) -> Self:
        if self.before is None and self.after is None:
            raise ValueError(
                "before and after are both null: nothing is expected. Give one of them, such as"
                " after: 0.843, or leave this metric out"
            )
        return self


class EvaluateConfig(VerdictConfig):
    split: Literal["test", "dev"]
    sample: SampleConfig
    score: ScoreConfig
    dev_score: ScoreConfig | None
    reference: ReferenceConfig
    duels: dict[Name, DuelConfig]
    control: bool
    best_of: Annotated[int, Field(ge=2)] | None
    prompted: PromptedBaseline | None
    baselines: dict[Name, OtherModel]
    chats: dict[Name, ChatConfig]

    def for_report(
        self, training: str | None, expect: dict[str, Expectation] | None
    ) -> "ReportConfig":
        values = {name: getattr(self, name) for name in VerdictConfig.model_fields}
        return ReportConfig(**values, training=training, gold=self.gold_scorers, expect=expect)

    @property
    def gold_scorers(self) -> list[str]:
        """Names of the scorers that never made pairs."""
        return [name for name, scorer in self.score.scorers.items() if scorer.gold]

    def variant_requests(self) -> Iterator[tuple[str, SampleRequest]]:
        """For each table row that samples SFT again: its name and its request (separate seeds)."""
        if self.control:
            yield CONTROL, self.sample.request_answers(CONTROL)
        if self.best_of:
            request = self.sample.request_answers("best-of", n=self.best_of)
            yield f"{BEST_OF_PREFIX}{self.best_of}", request
        if self.prompted:
            yield PROMPTED, self.sample.request_answers(PROMPTED, **dict(self.prompted))

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.baselines:
            is_taken = name in RESERVED_NAMES or is_merged(name)
            if is_taken or name.startswith(("round-", BEST_OF_PREFIX)):
                raise ValueError(
                    f"baselines.{name}: the table already has a row of this name. Give another name"
                )
        return self

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if ANSWER not in self.sample.settings:
            raise ValueError(
                f"sample.settings: scorers and judges read the setting {ANSWER}, which is missing."
                " Give one setting this name"
            )
        answer = self.sample.settings[ANSWER]
        multi_turn = [name for name, chat in self.chats.items() if chat.turns > 1]
        if answer.n > 1 and multi_turn:
            raise ValueError(
                f"chats.{multi_turn[0]}: the next turn can follow only one answer, and each turn"
                f" has {answer.n}."
                f" Give sample.settings.{ANSWER}.n=1, or chats.{multi_turn[0]}.turns=1"
            )
        if self.best_of and answer.temperature == 0:
            raise ValueError(
                f"best_of={self.best_of}: at sample.settings.{ANSWER}.temperature=0"
                " all answers are the same."
                f" Give best_of=null, or sample.settings.{ANSWER}.temperature=0.7"
            )
        if self.prompted and not (self.prompted.system or self.prompted.few_shot):
            raise ValueError(
                "prompted: it adds nothing to the prompt. Give system or few_shot, or prompted=null"
            )
        return self


class GateConfig(Block):
    scorer: str
    kl_budget: PositiveFloat | None
    min_gain: NonNegativeFloat


class ReportConfig(VerdictConfig):
    """The block of the stage: what the verdict needs, and what the config says of its scorers."""

    # The scorer that made the pairs; None where annotators or demonstrations did.
    training: str | None
    gold: list[str]  # the scorers that never made pairs
    expect: dict[str, Expectation] | None
