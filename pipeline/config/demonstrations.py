"""Demonstrations: where they come from, and a share of them beside the pairs of a preference training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, PositiveFloat, PositiveInt

from pipeline.config.base import Block, Local, Seed, Share
from pipeline.config.prompts import DecontaminationConfig


class PlaygroundDemonstrations(Block):
    kind: Literal["playground"]
    rows: PositiveInt
    constraints: PositiveInt
    obeyed: Share
    seed: Seed


class JsonlDemonstrations(Block):
    kind: Literal["jsonl"]
    path: Local
    on_bad_row: Literal["fail", "skip"]


DemonstrationsConfig = Annotated[
    PlaygroundDemonstrations | JsonlDemonstrations, Field(discriminator="kind")
]


class RehearsalConfig(Block):
    share: PositiveFloat
    weight: PositiveFloat
    data: DemonstrationsConfig
    fence: DecontaminationConfig
    template_kwargs: dict[str, JsonValue]


def _drop_zero_share(block: Any) -> Any:
    """A share of 0 is the training without any, in identity too: the point of a sweep where it begins."""
    return None if isinstance(block, dict) and block.get("share") == 0 else block


OptionalRehearsal = Annotated[RehearsalConfig | None, BeforeValidator(_drop_zero_share)]
