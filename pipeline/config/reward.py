"""The reward model: an existing checkpoint, or one trained here on preferences."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue, PositiveInt

from pipeline.config.base import Block, DecontaminationConfig, Seed, Share, Trust, Weights
from pipeline.config.models import BaseConfig
from pipeline.config.offline import PreferenceRows
from pipeline.config.pair import DevPairs
from pipeline.config.training import Optimization


class RewardCheckpoint(Block):
    kind: Literal["checkpoint"]
    model: Weights
    revision: str | None
    trust: Trust


class PlaygroundPreferences(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    obeyed: Annotated[float, Field(gt=0, lt=1)]  # at 0 or 1 all answers would be equally good
    flipped: Share
    seed: Seed


class UserPreferences(PreferenceRows):
    kind: Literal["given"]


PreferencesConfig = Annotated[PlaygroundPreferences | UserPreferences, Field(discriminator="kind")]


class RewardTraining(Optimization):
    kind: Literal["train"]
    start: Literal["sft", "base"] | BaseConfig
    data: PreferencesConfig
    learn_from: Literal["pairs", "unpaired"]
    held_out: DevPairs
    decontamination: DecontaminationConfig
    template_kwargs: dict[str, JsonValue]


RewardConfig = Annotated[RewardCheckpoint | RewardTraining, Field(discriminator="kind")]
