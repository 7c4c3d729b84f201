"""What marks completions: one Protocol, one `match`. A scorer sees one shard at a time and knows no files.

A shard holds whole prompts. Each answer gets a mark; what could not be marked gets one without a score, never none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pipeline.artifacts import Model
from pipeline.config import (
    EnsembleScorer,
    FunctionScorer,
    LabelsScorer,
    PairwiseScorer,
    RewardModelScorer,
    RubricScorer,
    ScorerConfig,
)

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion with all that a scorer may look at; the candidates of a prompt lie side by side."""

    sample_id: str
    prompt_id: str
    prompt: list[Message]
    completion: str
    columns: dict[str, Any]  # of its prompt: what the rule or the judge needs to know
    tokens: int | None = None  # how many were sampled, if it was


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer. Without a criterion it is the scorer's whole opinion; a failed one has no score."""

    sample_id: str
    score: float | None
    criterion: str = ""
    detail: str = ""  # why it failed, or what else the scorer knows (JSON), such as its flip rate
    abstained: bool = False  # it has no opinion on this answer, such as people who were not asked: that is no failure


# A rule: `{"": whole, criterion: part}` of one answer; it raises when it cannot tell.
Check = Callable[[Answer], dict[str, float]]


class Scorer(Protocol):
    """`mark` shard by shard, then `close`. What it needs to start, it starts with the first shard.

    It is called for the next shard before the marks of this one are read: what works elsewhere may begin.
    """

    def mark(self, answers: list[Answer]) -> Iterator[Score]: ...

    def close(self) -> None: ...


@runtime_checkable
class Paid(Protocol):
    """A scorer that costs more than time; its figures are of this process."""

    def cost(self) -> dict[str, float]: ...


def open_scorer(
    cfg: ScorerConfig, reward: Model | None = None, knob: str = "score.scorers.NAME"
) -> Scorer:
    """`knob`: where the person's config has this scorer, for words that name a knob of it."""
    match cfg:
        case RewardModelScorer():
            from pipeline.scorers.reward_model import RewardModel

            return RewardModel(cfg, reward, knob)
        case RubricScorer():
            from pipeline.scorers.judge import Rubric

            return Rubric(cfg, knob)
        case PairwiseScorer():
            from pipeline.scorers.judge import Pairwise

            return Pairwise(cfg, knob)
        case FunctionScorer():
            from pipeline.scorers.function import UserFunction

            return UserFunction(cfg, knob)
        case LabelsScorer():
            from pipeline.scorers.labels import Labels

            return Labels(cfg)
        case EnsembleScorer():
            raise TypeError("an ensemble marks nothing itself: see ensemble.combined")
        case _:
            from pipeline.scorers.rules import Rules

            return Rules(cfg, knob)
