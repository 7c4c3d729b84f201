"""What every block of the config is: frozen, without defaults, refusing unknown keys; and what several share."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt
from pydantic_core import core_schema

Share = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Workers = Literal["auto"] | PositiveInt  # processes of one stage, each with GPUs of its own


class Local(str):
    """The path of a local file or folder: its content enters identity, its place does not."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))


class Weights(Local):
    """A model: a local folder (its content enters identity) or the name of a hub repository (its commit does)."""

    @property
    def local(self) -> bool:
        return self.startswith((".", "/", "~")) or Path(self).exists()


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Limits(Block):
    prompt: PositiveInt
    completion: PositiveInt


class Template(Block):
    chat_template: Local | None
    kwargs: dict[str, JsonValue]


class Trust(Block):
    """What a checkpoint may bring along that runs code on this machine; each is refused unless named."""

    remote_code: bool
    pickled_weights: bool
