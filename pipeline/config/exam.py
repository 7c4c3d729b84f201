"""How models are examined, and what the report says of it."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.config.block import Block
from pipeline.config.judge import DuelConfig, Name
from pipeline.config.sample import SampleConfig
from pipeline.config.score import ReferConfig, ScoreConfig


class ExamConfig(Block):
    split: Literal["test", "dev"]
    sample: SampleConfig
    score: ScoreConfig
    dev_score: ScoreConfig | None
    refer: ReferConfig
    duels: dict[Name, DuelConfig]


class EvaluateConfig(Block):
    scorer: str
    level: Annotated[float, Field(gt=0, lt=1)]
    resamples: PositiveInt
    seed: int
