"""What marks completions, and the log-probabilities that a reference or an exam needs."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipeline.config.block import Block, Dtype, Share, Template, Trust, Weights, Workers
from pipeline.config.judge import PairwiseScorer, RubricScorer


class RuleScorer(Block):
    kind: Literal["rules"]
    rule: Literal["playground"]
    gold: bool


class RewardModelRuntime(Block):
    batch_tokens: PositiveInt
    memory: Share


class RewardModelScorer(Block):
    kind: Literal["reward_model"]
    model: Weights | None  # None: the run's own, of the stage `reward`
    revision: str | None
    trust: Trust
    template: Template
    input: Literal["chat", "pair"]
    label: str | None
    max_length: PositiveInt | None
    strip_reasoning: bool
    engine: Literal["transformers", "vllm"]
    dtype: Dtype
    gold: bool
    runtime: RewardModelRuntime

    @model_validator(mode="after")
    def _pairs_have_segments(self) -> Self:
        if self.engine == "vllm" and self.input == "pair":
            raise ValueError(
                "input=pair needs engine=transformers: vLLM is not told which tokens are question and which are answer"
            )
        return self


ScorerConfig = Annotated[
    RuleScorer
    | RewardModelScorer
    | RubricScorer
    | PairwiseScorer,
    Field(discriminator="kind"),
]  # fmt: skip


class ScoreConfig(Block):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)]
    max_failed: Share

    @property
    def asks_reward(self) -> bool:
        """Whether a scorer marks with the model of the run's own stage `reward`."""
        return any(isinstance(scorer, RewardModelScorer) and scorer.model is None for scorer in self.scorers.values())


class ReferRuntime(Block):
    batch_tokens: PositiveInt
    workers: Workers


class ReferConfig(Block):
    dtype: Dtype
    runtime: ReferRuntime
