"""Trackers: what shows a training's curves live. Outside identity; a failure stops no training."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Block


class Wandb(Block):
    kind: Literal["wandb"]
    mode: Literal["online", "offline"]
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    group: str | None
    name: str | None


class Tensorboard(Block):
    kind: Literal["tensorboard"]


TrackerConfig = Annotated[Wandb | Tensorboard, Field(discriminator="kind")]
