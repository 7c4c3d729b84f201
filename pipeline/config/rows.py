"""Sources of existing rows: local files, or a dataset on the hub."""

from typing import Any, Literal

from pydantic_core import core_schema

from pipeline.config.base import Block, Local


class HubDataset(str):
    """The name of a hub dataset: its commit enters identity."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1)
        )


class FileRows(Block):
    kind: Literal["file"]
    path: Local


class HubRows(Block):
    kind: Literal["hub"]
    dataset: HubDataset
    revision: str | None
    subset: str | None
    split: str
