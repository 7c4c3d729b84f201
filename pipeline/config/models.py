"""The model before SFT and the SFT model: checkpoints as they are, or made here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.config.base import Block, Dtype, Seed, Template, Trust, Weights
from pipeline.config.demonstrations import DemonstrationsConfig
from pipeline.config.prompts import DecontaminationConfig
from pipeline.config.sample import ServedModel
from pipeline.config.training import Optimization


class Checkpoint(Block):
    kind: Literal["checkpoint"]
    model: Weights
    revision: str | None
    trust: Trust
    template: Template
    dtype: Dtype

    @property
    def name_or_path(self) -> Path | str:
        """A local folder, or a hub name."""
        return Path(self.model).expanduser() if self.model.is_local else str(self.model)


class TinyBase(Block):
    kind: Literal["tiny"]
    vocabulary: PositiveInt
    hidden: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    context: PositiveInt
    seed: Seed


BaseConfig = Annotated[Checkpoint | TinyBase, Field(discriminator="kind")]


class SftTraining(Optimization):
    kind: Literal["train"]
    data: DemonstrationsConfig
    fence: DecontaminationConfig
    template: Template


class BestOfNConfig(Optimization):
    """SFT on the best of a round's own samples."""

    kind: Literal["refit"]
    scorer: str
    min_score: float | None


# A model beside those of the run: opened here, or asked where it is served.
OtherModel = Annotated[Checkpoint | ServedModel, Field(discriminator="kind")]
SftConfig = Annotated[Checkpoint | SftTraining, Field(discriminator="kind")]
