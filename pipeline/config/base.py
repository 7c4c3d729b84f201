"""What every block of the config is: frozen, without defaults, refusing unknown keys; and what several share."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, LiteralString, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic_core import PydanticCustomError, core_schema

from pipeline import hardware

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and torch both take
# `auto` is what the device here computes in. Reading the config resolves it, so that no identity holds `auto`.
resolve_auto = AfterValidator(hardware.resolve_dtype)
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], resolve_auto]
TrainingDtype = Annotated[
    Literal["auto", "float32", "bfloat16"], resolve_auto
]  # float16 overflows without loss scaling
Workers = Literal["auto"] | PositiveInt  # processes of one stage, each with GPUs of its own


class Local(str):
    """The path of a local file or folder: its content enters identity, its place does not."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1)
        )


class Weights(Local):
    """A model: a local folder (its content enters identity) or the name of a hub repository (its commit does)."""

    @property
    def is_local(self) -> bool:
        return self.startswith((".", "/", "~")) or Path(self).exists()


class Function(str):
    """A function of the user's own: `./file.py:name`, whose file enters identity by content, or `package.module.name`.

    What the file imports, and what an installed package holds, is not seen: rename the scorer when that changes.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls._parse, core_schema.str_schema())

    @classmethod
    def _parse(cls, text: str) -> "Function":
        function = cls(text)
        if not (function.name.isidentifier() and function.source):
            raise ValueError("a function is written ./file.py:name or package.module.name")
        return function

    @property
    def file(self) -> Local | None:
        return Local(self.source) if ":" in self else None

    @property
    def source(self) -> str:
        return self.rpartition(":" if ":" in self else ".")[0]

    @property
    def name(self) -> str:
        return self.rpartition(":" if ":" in self else ".")[2]


class Block(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
    outside_identity: ClassVar[frozenset[str]] = (
        frozenset()
    )  # knobs that change nothing of what a stage makes


def _refuse_empty(value: Any) -> Any:
    """`store=` would mean the working directory."""
    if value == "":
        raise ValueError("a folder was expected, such as ./folder")
    return value


Folder = Annotated[Path, BeforeValidator(_refuse_empty)]


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


class Prices(Block):
    """Money for a million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class SecretValueError(PydanticCustomError):
    """What is wrong with a value that may hold a key: it is never repeated."""

    def __new__(cls, said: LiteralString) -> Self:
        return super().__new__(cls, "unshown", said)


def _check_address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SecretValueError("an address such as http://localhost:8000/v1 was expected")
    if parts.username or parts.password or parts.query:
        raise SecretValueError(
            "an address carries no key: name its environment variable in api_key_env"
        )
    return url


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SecretValueError(
            "the name of an environment variable was expected, never the key itself"
        )
    return name


# What a message may repeat: where a server stands, and under which name its key is kept.
Address = Annotated[str, AfterValidator(_check_address)]
EnvVariable = Annotated[str, AfterValidator(_check_variable)]


_KEY_NAMES = re.compile(
    r"^(x)?(access|auth(entication|orization)?|bearer|client|session)?"
    r"(key|token|secret|password|passwd|credentials?|authorization|bearer|auth)$"
    r"|(api|access|secret|private)key$"
)
_KEY_VALUES = re.compile(
    r"^(bearer\s+\S+|(sk|pk|hf|gsk|xai|ghp|nvapi|r8)[-_]\S{16,})$", re.IGNORECASE
)


def _refuse_keys(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    waiting: list[JsonValue] = [body]
    while waiting:
        item = waiting.pop()
        names = (
            [re.sub(r"[^a-z]", "", name.lower()) for name in item] if isinstance(item, dict) else []
        )
        if any(map(_KEY_NAMES.search, names)) or (
            isinstance(item, str) and _KEY_VALUES.match(item.strip())
        ):
            raise SecretValueError(
                "a request's body carries no key, which every run would write down:"
                " name its environment variable in runtime.api_key_env"
            )
        waiting += (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else []
        )
    return body


# More fields of a request. They are identity and stand in the folder of every run, so none of them may be a key.
RequestBody = Annotated[dict[str, JsonValue], AfterValidator(_refuse_keys)]


class Server(Block):
    """Where a server of the user's naming stands, what opens it and how it is asked: none of it is identity."""

    base_url: Address
    api_key_env: EnvVariable | None
    concurrency: PositiveInt
    timeout: PositiveFloat
    retries: NonNegativeInt
