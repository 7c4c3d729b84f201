"""What marks completions, and the log-probabilities that a reference or an exam needs."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.config.block import Block, Dtype, Share
from pipeline.config.training import Quantization


class RuleScorer(Block):
    kind: Literal["rules"]
    rule: Literal["playground"]
    gold: bool


ScorerConfig = RuleScorer  # a union by `kind` as soon as there is a second one


class ScoreConfig(Block):
    scorers: Annotated[dict[str, ScorerConfig], Field(min_length=1)]
    max_failed: Share


class ReferRuntime(Block):
    batch_tokens: PositiveInt


class ReferConfig(Block):
    dtype: Dtype
    quantization: Quantization | None
    runtime: ReferRuntime
