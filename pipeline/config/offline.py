"""Offline preferences: answers that were judged elsewhere."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pipeline.config.base import Block, DecontaminationConfig
from pipeline.config.prompts import Columns
from pipeline.config.rows import FileRows, HubRows

PreferenceShape = Literal[
    "auto",
    "trl",
    "conversation",
    "argilla",
    "intel",
    "hh",
    "scored",
    "unpaired",
    "columns",
]


class PreferenceRows(Block):
    """Where preferences are read from, and the shape of their rows."""

    source: Annotated[FileRows | HubRows, Field(discriminator="kind")]
    shape: PreferenceShape
    columns: Columns
    unpaired_threshold: float | None
    on_bad_row: Literal["fail", "skip"]


class OfflineConfig(PreferenceRows):
    template_kwargs: dict[str, JsonValue]
    decontamination: DecontaminationConfig
