"""The base model and the SFT model: existing checkpoints, or models made here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.config.base import (
    Block,
    DecontaminationConfig,
    Dtype,
    GgufFile,
    Seed,
    Template,
    Trust,
    Weights,
)
from pipeline.config.demonstrations import DemonstrationsConfig
from pipeline.config.sample import AnswersFile, ServedModel
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
        """A local folder, or a name on the hub."""
        return Path(self.model).expanduser() if self.model.is_local else str(self.model)


class GgufCheckpoint(Block):
    """A quantised model in one file, which is dequantised into the store."""

    kind: Literal["gguf"]
    path: GgufFile
    template: Template
    dtype: Dtype


class TinyBase(Block):
    kind: Literal["tiny"]
    vocabulary: PositiveInt
    hidden: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    context: PositiveInt
    seed: Seed


BaseConfig = Annotated[Checkpoint | GgufCheckpoint | TinyBase, Field(discriminator="kind")]


class SftTraining(Optimization):
    kind: Literal["train"]
    data: DemonstrationsConfig
    decontamination: DecontaminationConfig
    template: Template


class BestOfNConfig(Optimization):
    """SFT on the best samples of a round."""

    kind: Literal["best_of_n"]
    answers: Literal["samples", "revised"]
    scorer: str
    min_score: float | None

    @property
    def outside_identity(self) -> frozenset[str]:
        """The Step's inputs are these answers."""
        return frozenset({"answers"})


# A baseline in the table: a checkpoint opened here, a model behind a server, published answers.
OtherModel = Annotated[Checkpoint | ServedModel | AnswersFile, Field(discriminator="kind")]
SftConfig = Annotated[Checkpoint | GgufCheckpoint | SftTraining, Field(discriminator="kind")]
