"""What shows a training's curves while it runs, beside `metrics.jsonl`: outside identity, and never in the way."""

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
