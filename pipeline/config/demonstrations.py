"""Demonstrations: their sources, and rehearsal, which adds some to the pairs of each step."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, PositiveFloat, PositiveInt

from pipeline.config.base import Block, DecontaminationConfig, Local, Seed, Share


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
    decontamination: DecontaminationConfig
    template_kwargs: dict[str, JsonValue]


def _drop_zero_share(block: Any) -> Any:
    """A share of 0 means no rehearsal, in identity too, so that a sweep may start at 0."""
    return None if isinstance(block, dict) and block.get("share") == 0 else block


OptionalRehearsal = Annotated[RehearsalConfig | None, BeforeValidator(_drop_zero_share)]
