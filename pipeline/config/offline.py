"""Preferences that somebody else has judged."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue
from pydantic_core import core_schema

from pipeline.config.block import Block, Local
from pipeline.config.prompts import Fence


class HubDataset(str):
    """The name of a hub dataset: its commit enters identity."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class FileRows(Block):
    kind: Literal["file"]
    path: Local


class HubRows(Block):
    kind: Literal["hub"]
    dataset: HubDataset
    revision: str | None
    subset: str | None
    split: str


Shape = Literal["auto", "trl", "argilla", "intel", "hh", "scored", "thumbs", "columns"]


class PreferenceRows(Block):
    """Where preferences lie and what their rows look like."""

    source: Annotated[FileRows | HubRows, Field(discriminator="kind")]
    shape: Shape
    columns: dict[str, str]
    thumbs_at: float | None
    on_bad_row: Literal["fail", "skip"]


class OfflineConfig(PreferenceRows):
    template_kwargs: dict[str, JsonValue]
    fence: Fence
