"""Scorers of completions: one Protocol and one `match` that opens them.

A scorer sees one shard at a time and knows no files. A shard holds whole prompts. Every answer gets
a `Score`; one that could not be scored gets a `Score` whose score is None.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pipeline.artifacts import Model
from pipeline.config import (
    EnsembleScorer,
    FunctionScorer,
    JsonScorer,
    LabelsScorer,
    PairwiseScorer,
    RewardModelScorer,
    RubricScorer,
    ScorerConfig,
)

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion with all that a scorer may read. A prompt's candidates are neighbours."""

    sample_id: str
    prompt_id: str
    prompt: list[Message]
    completion: str
    columns: dict[str, Any]  # of its prompt: what a rule or a judge needs to know
    tokens: int | None = None  # how many were sampled; None: it was not sampled


@dataclass(frozen=True, slots=True)
class Score:
    """One score of one answer: the scorer's overall score, or that of one criterion.

    A failed one has no score.
    """

    sample_id: str
    score: float | None
    criterion: str = ""
    detail: str = ""  # why it failed, or what else the scorer knows (JSON), such as its flip rate
    # The scorer has no opinion on this answer, as annotators who did not see it. Not a failure.
    abstained: bool = False


# A rule: `{"": overall, criterion: part}` for one answer. It raises when it cannot tell.
Check = Callable[[Answer], dict[str, float]]


class Scorer(Protocol):
    """Call `score` shard by shard, then `close`.

    Whatever a scorer needs, it starts with the first shard.

    `score` is called for the next shard before the scores of this one are read, so that work in
    other processes can begin.
    """

    def score(self, answers: list[Answer]) -> Iterator[Score]: ...

    def close(self) -> None: ...


@runtime_checkable
class PaidScorer(Protocol):
    """A scorer that costs more than time. Its figures count this process alone."""

    def get_cost(self) -> dict[str, float]: ...


def open_scorer(
    cfg: ScorerConfig, reward: Model | None = None, knob: str = "score.scorers.NAME"
) -> Scorer:
    """`knob`: where the user's config has this scorer; messages name it."""
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
        case JsonScorer(calls=str(column)):
            from pipeline.scorers.tool_calls import ToolCalls

            return ToolCalls(column)
        case EnsembleScorer():
            raise TypeError("an ensemble scores nothing itself: see ensemble.combine_scores")
        case _:
            from pipeline.scorers.rules import Rules

            return Rules(cfg, knob)
