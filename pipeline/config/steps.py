"""Step-DPO: where solutions go wrong, and the steps that go on from there."""

from typing import Literal

from pipeline.config.base import Block, Share
from pipeline.config.judge import Judge
from pipeline.config.sample import SamplingSettings


class StepJudge(Judge):
    """Which step of a wrong solution is the first wrong one?"""

    max_failed: Share
    strip_reasoning: Literal[False]  # a solution is cut as it was sampled


class StepCut(Block):
    """How solutions are cut, and which of them are right."""

    split: Literal["numbered", "paragraphs", "lines"]
    right: float  # the score from which a solution is right


class StepsConfig(StepCut):
    """The user's block."""

    judge: StepJudge | None
    sampling: SamplingSettings

    @property
    def cut(self) -> StepCut:
        return StepCut(split=self.split, right=self.right)

    def search(self, scorer: str) -> "StepSearch":
        return StepSearch(split=self.split, right=self.right, judge=self.judge, scorer=scorer)


class StepSearch(StepCut):
    """The search for the first wrong step of each prompt's wrong solutions."""

    judge: StepJudge | None
    scorer: str
