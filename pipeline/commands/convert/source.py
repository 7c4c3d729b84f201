"""A training file of another tool: read, and its values by type. Remembers which keys were read."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from pipeline.errors import UserError, describe_place, make_printable

MAX_SHOWN = 60  # characters of a value


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML or JSON file."""
    expected = "Expected a YAML or JSON file with the keys of one training."
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file{describe_place(path)}.\n"
            "  Type strop convert FILE, with a training file of another tool."
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder.\n  {expected}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this is not a text file in UTF-8.\n  {expected}") from None
    keys = _parse(path, text)
    if keys is None:
        raise UserError(f"{path}: this file is empty.\n  {expected}")
    if not isinstance(keys, dict):
        kind = "a list" if isinstance(keys, list) else f"one {type(keys).__name__}"
        raise UserError(f"{path}: it holds {kind}, not keys with values.\n  {expected}")
    return {str(key): value for key, value in keys.items()}


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        place, problem = f"{path}, line {error.lineno}", error.msg
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        place, problem = f"{path}, line {line}", str(error.problem)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        place, problem = str(path), make_printable(str(error)) or type(error).__name__
    kind = "JSON" if path.suffix == ".json" else "YAML"
    raise UserError(f"{place}: this is not {kind} ({problem}).\n  Correct this line or one before.")


def show(value: object) -> str:
    """A value in one short line. Never walks deep: aliases can make a small file very large."""
    match value:
        case bool() | None:
            return {True: "true", False: "false", None: "null"}[value]
        case dict():
            return "{…}" if value else "{}"
        case list():
            plain = all(isinstance(item, str | int | float) for item in value)
            return _cut(f"[{', '.join(map(show, value))}]") if plain else "[…]"
        case float():
            return f"{value:g}"
    return _cut(str(value))


def is_off(value: object) -> bool:
    """Whether a key is empty or switched off."""
    return value is None or value is False or value in ("", "none", "no", "false", [], {})


def _cut(text: str) -> str:
    """One line that YAML takes in a comment."""
    line = make_printable(" ".join(text.split()), MAX_SHOWN)
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def parse_number(value: object) -> float | None:
    """A finite number, or None. YAML reads 5e-7, without a point, as a text."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_plain(value: object) -> bool:
    """Whether a value is a scalar, or a list or a dict of scalars."""
    items = value.values() if isinstance(value, dict) else value
    return not isinstance(value, dict | list) or not any(
        isinstance(item, dict | list) for item in cast(Iterable[object], items)
    )


class Source:
    """The file's keys by the names of a tool's table; the tool's default where a key is absent."""

    def __init__(
        self,
        path: Path,
        keys: Mapping[str, Any],
        names: Mapping[str, tuple[str, ...]],
        defaults: Mapping[str, Any],
        gpus: int,
        method: str | None,
    ):
        self.path = path
        self.keys = keys
        self.names = names
        self.defaults = defaults
        self.gpus = gpus  # of the training, which no file names
        self.method = method  # the trainer, where the file's tool does not name it
        self.read_keys: set[str] = set()

    def key(self, name: str) -> str:
        """The key that the file has for a name, or else the first that it could have."""
        keys = self.names.get(name, (name,))
        return next((key for key in keys if self.keys.get(key) is not None), keys[0])

    def has(self, name: str) -> bool:
        return self.keys.get(self.key(name)) is not None

    def value(self, name: str) -> Any:
        self.read_keys.update(self.names.get(name, (name,)))
        return self.keys[self.key(name)] if self.has(name) else self.defaults.get(name)

    def number(self, name: str) -> float | None:
        value = self.value(name)
        if value is None:
            return None
        if (number := parse_number(value)) is None:
            raise self.refuse(name, "a number")
        return number

    def numbers(self, name: str) -> list[float]:
        """A list of numbers; one number is a list too."""
        value = self.value(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        numbers = [number for item in items if (number := parse_number(item)) is not None]
        if len(numbers) != len(items):
            raise self.refuse(name, "a list of numbers")
        return numbers

    def count(self, name: str) -> int | None:
        number = self.number(name)
        if number is not None and (number < 1 or number != int(number)):
            raise self.refuse(name, "a whole number from 1")
        return None if number is None else int(number)

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if value in (None, True, False):
            return bool(value)
        if str(value).lower() in ("true", "yes", "false", "no"):
            return str(value).lower() in ("true", "yes")
        raise self.refuse(name, "true or false")

    def text(self, name: str) -> str | None:
        value = self.value(name)
        if isinstance(value, dict | list | bool):
            raise self.refuse(name, "a text")
        return None if value in (None, "") else str(value)

    def texts(self, name: str) -> list[str]:
        """A list of texts; one text may have several, between commas."""
        value = self.value(name)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(name, "a text or a list of texts")
        return value

    def blocks(self, name: str) -> list[dict[str, Any]]:
        value = self.value(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refuse(name, "a list of blocks of keys")
        return value

    def refuse(self, name: str, expected: str) -> UserError:
        key = self.key(name)
        return UserError(
            f"{self.path}: {key}: {show(self.keys.get(key))}: expected {expected}.\n"
            "  Correct it in the file and run the same command again."
        )
