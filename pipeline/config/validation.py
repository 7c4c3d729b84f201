"""Validates what Hydra composed: every fault at once, with its source and what to type instead."""

import math
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config import renamed
from pipeline.config.base import OWN_KNOB, name_own_knobs
from pipeline.config.trl_args import NO_CONTEXT_PARALLEL
from pipeline.errors import MEANT, UserError, suggest

BlockT = TypeVar("BlockT", bound=BaseModel)
KeyPath = tuple[str, ...]
# What score= offers, the most frequent first; score=rules knows the playground alone.
SCORES = "reward, rubric, pairwise, ifeval, math, code, function, labels, length, regex, json"
# Blocks whose entries the user names: the group of the files to mount there, and what one is.
MOUNTED: dict[KeyPath, tuple[str, str]] = {
    ("scorers",): ("scorer", "scorer"),
    ("pool",): ("member", "model"),
}
MAX_GUESSES = 3
# Knobs of a training that others have, by the name that they use.
UNSUPPORTED = {"parallel": NO_CONTEXT_PARALLEL}
KNOB = re.compile(r"(?<![\w.@+~=-])([a-z_]\w*)(?:\.\w+)*(?==)")  # as in `runtime.launch=ddp`


# Files whose first line says where their block is.
PACKAGES = {"adapter": "train.adapter"}


def split_mount(mounted: str) -> tuple[str, KeyPath]:
    """The group of a choice, and the place of its block."""
    group, _, package = mounted.partition("@")
    return group, tuple((package or PACKAGES.get(group, group)).split("."))


@dataclass(frozen=True)
class Composition:
    """A composed config, and what it was composed from.

    `choices` are the files of conf/; `typed` are the overrides as Hydra's parser returns them;
    `copies` are the values of `raw` that another block chose, each with its original.
    """

    raw: dict[str, Any]
    choices: dict[str, str]
    typed: list[Any]
    copies: Mapping[KeyPath, KeyPath] = field(default_factory=dict)

    def find_original(self, path: KeyPath) -> KeyPath:
        """The key that the user chose this value by."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.copies:
                return self.find_original((*self.copies[path[:length]], *path[length:]))
        return path

    def find_file(self, path: KeyPath) -> str:
        """The file in conf/ that writes this key: the longest mounted group that contains it."""
        best, file = 0, "conf/config.yaml"
        for mounted, choice in self.choices.items():
            group, mount = split_mount(mounted)
            if path[: len(mount)] == mount and len(mount) > best and group != "recipes":
                best, file = len(mount), f"conf/{group}/{choice}.yaml"
        return file

    def find_source(self, path: KeyPath) -> str:
        """Who to blame for the value of this key."""
        if any(_sets_value(override, path) for override in self.typed):
            return "command line"
        if "recipes" in self.choices:
            return f"recipes/{self.choices['recipes']}.yaml"
        return self.find_file(path)


def validate(
    composition: Composition, shape: type[BlockT], echoes: Mapping[KeyPath, KeyPath] | None = None
) -> BlockT:
    """Return the config, or raise every fault at once.

    `echoes` are values copied from another key; a fault in one is reported there.
    """
    echoes = echoes or {}
    raw = composition.raw
    absent = [
        path for path, value in iter_leaves(raw) if value == "???" and not _is_echo(path, echoes)
    ]
    if knobs := dict.fromkeys(map(composition.find_original, absent)):
        raise UserError("\n".join(_describe_absent(path, composition) for path in knobs))
    try:
        config = shape.model_validate(raw)
    except ValidationError as error:
        errors = _merge_alternatives(_list_errors(error), raw)
        unknown = _find_paths(errors, "extra_forbidden", raw)
        unlisted = _find_paths(errors, "not_a_list", raw)
        errors += _find_hidden_errors(unknown, unlisted, errors, raw, shape)
        names = _KnobNames(unknown, _find_paths(errors, "missing", raw))
        replaced = {renamed.rename(path) for path in unknown} - unknown
        errors = [e for e in errors if locate_error(e["loc"], raw).path not in replaced]
        own = [e for e in errors if not _is_echo(locate_error(e["loc"], raw).path, echoes)]
        faults = dict.fromkeys(
            _describe_error(e, composition, names, echoes) for e in _merge_missing(own or errors)
        )
        raise UserError("\n".join(faults)) from error
    # Fields that take any JSON accept infinite numbers, which JSON does not have.
    if infinite := list(_find_infinite(raw)):
        raise UserError("\n".join(_describe_infinite(composition, *found) for found in infinite))
    return config


def _describe_absent(path: KeyPath, composition: Composition) -> str:
    """A knob without a value. The comment above it in conf/ says what it takes."""
    key, file = ".".join(path), Path(__file__).parent.parent / composition.find_file(path)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    above = re.search(rf"((?:^ *#.*\n)+) *{re.escape(path[-1])}: \?\?\?$", text, re.MULTILINE)
    comment = [f"\n  {line.strip(' #')}" for line in above[1].splitlines()] if above else []
    return f"{key} has no value yet. Give {key}=VALUE{':' if comment else ''}{''.join(comment)}"


def _find_infinite(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    for name, item in _items(value).items():
        yield from _find_infinite(item, (*path, str(name)))
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _items(value: Any) -> dict[Any, Any]:
    """The items of a dict or list by name or index; of anything else none."""
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, list) else {}


def _describe_infinite(composition: Composition, path: KeyPath, value: float) -> str:
    source, file = composition.find_source(path), composition.find_file(path)
    return f"{source}: {'.'.join(path)}={value}: expected a finite number.  ({file})"


class _KnobNames(NamedTuple):
    """The keys that are not knobs, and the knobs that were left out."""

    unknown: Set[KeyPath]
    missing: Set[KeyPath]

    def list_known(self, parent: dict[str, Any], path: KeyPath) -> list[str]:
        """The knobs of the block at this path."""
        missing = [knob[-1] for knob in self.missing if knob[:-1] == path]
        return [name for name in parent if (*path, name) not in self.unknown] + missing


def _find_paths(errors: list[Any], kind: str, raw: Any) -> Set[KeyPath]:
    return {locate_error(e["loc"], raw).path for e in errors if e["type"] == kind}


def _list_errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False))


def _is_echo(path: KeyPath, echoes: Mapping[KeyPath, KeyPath]) -> bool:
    return any(path[: len(echo)] == echo for echo in echoes)


def _merge_alternatives(errors: list[Any], raw: Any) -> list[Any]:
    """Report a value once that fits none of its alternatives, such as `auto` or a number.

    A single value in place of a list is one fault as well.
    """
    found: dict[Any, Any] = {}
    for number, error in enumerate(errors):
        path, _, value = locate_error(error["loc"], raw)
        is_leaf = isinstance(value, str | int | float) and error["type"] != "secret"
        if error["type"] == "list_type" and is_leaf:
            error = {**error, "type": "not_a_list"}
        first = found.setdefault(path if is_leaf else number, error)
        if first is not error:
            message = f"{first['msg']} or {error['msg'].removeprefix('Input should be ')}"
            found[path] = {**first, "type": "alternatives", "msg": message}
    return list(found.values())


def _merge_missing(errors: list[Any]) -> list[Any]:
    """What one block lacks is one fault: it may be a block whose name was misspelt."""
    lacking: dict[Any, dict[str, None]] = {}
    for error in errors:
        if error["type"] == "missing":
            lacking.setdefault(error["loc"][:-1], {})[str(error["loc"][-1])] = None
    merged: dict[Any, Any] = {}
    for number, error in enumerate(errors):
        block = error["loc"][:-1]
        if error["type"] == "missing" and block and len(lacking[block]) > 1:
            merged[block] = {**error, "type": "incomplete", "names": lacking[block]}
        else:
            merged[number] = error
    return list(merged.values())


def _find_hidden_errors(
    unknown: Set[KeyPath],
    unlisted: Set[KeyPath],
    reported: list[Any],
    raw: dict[str, Any],
    shape: type[BaseModel],
) -> list[Any]:
    """The faults that pydantic reports only once unknown keys are gone and lists are lists."""
    if not unknown and not unlisted:
        return []
    try:
        shape.model_validate(_repair(raw, unknown, unlisted))
    except ValidationError as error:
        known = {(e["loc"], e["type"]) for e in reported}
        errors = _merge_alternatives(_list_errors(error), raw)
        return [e for e in errors if (e["loc"], e["type"]) not in known]
    return []


def _repair(value: Any, unknown: Set[KeyPath], unlisted: Set[KeyPath], path: KeyPath = ()) -> Any:
    """The value without its unknown keys, and with single values in lists where lists belong."""
    items = {name: (item, (*path, str(name))) for name, item in _items(value).items()}
    if isinstance(value, list):
        return [_repair(item, unknown, unlisted, at) for item, at in items.values()]
    if isinstance(value, dict):
        return {
            name: _repair(item, unknown, unlisted, at)
            for name, (item, at) in items.items()
            if at not in unknown
        }
    return [value] if path in unlisted else value


def _describe_error(
    error: Any, composition: Composition, names: _KnobNames, echoes: Mapping[KeyPath, KeyPath]
) -> str:
    path, parent, value = locate_error(error["loc"], composition.raw)
    copied, path = path, composition.find_original(path)
    key, file = ".".join(path), composition.find_file(path)
    source = composition.find_source(path)
    if original := echoes.get(path):
        source, file = composition.find_source(original), f"{file} copies {'.'.join(original)}"
    match error["type"]:
        case "extra_forbidden":
            known = names.list_known(parent, copied[:-1])
            longer = _find_longer_paths(copied, composition, names.unknown)
            fault = _describe_unknown(path, parent, known, longer)
        case "missing" | "incomplete" | "union_tag_not_found" if file.endswith("/none.yaml"):
            group, source = path[0], composition.find_source(path[:1])
            fault = f"{group} is none, which takes no knobs. Choose another file of conf/{group}/."
        case "missing":
            fault = f"{key} is missing."
        case "incomplete":
            block = path[:-1]
            source = composition.find_source(block)
            guess = suggest(block[-1], _list_neighbours(composition.raw, copied[:-1]))
            fault = f"{'.'.join(block)} lacks {', '.join(error['names'])}."
            if guess.startswith(MEANT):
                fault = f"{fault} {guess}"
        case "union_tag_not_found" if path[-2:-1] in MOUNTED:
            group, noun = MOUNTED[path[-2:-1]]
            fault = (
                f"{key} has knobs, and no {noun} of this name is chosen. Leave them out,"
                f" or give +{group}@{key}=FILE."
            )
        case "union_tag_not_found":
            fault = f"{key}.kind is missing."
        case "too_short" if path[-1] == "scorers":
            fault = f"{key} is empty. {_suggest_scorers(key)}"
        case "not_a_list":
            fault = f"{key}={value}: expected a list: write {key}=[{value}]."
        case "secret":
            fault = f"{key}: {error['msg']}."
        case _:
            message = error["msg"].removeprefix("Value error, ")
            message = _write_knobs_in_full(message, path, value, composition)
            if not key:
                return message
            shown = key if isinstance(value, dict) else f"{key}={value!r}"
            fault = f"{shown}: {message}."
            if (new := renamed.rename_value(path, value)) is not value:  # NaN is unequal to itself
                fault = f"{key}={value}: {value} is {new} now. Give {key}={new}."
    return f"{source}: {fault}  ({file})"


def _list_neighbours(raw: Any, path: KeyPath) -> list[str]:
    for name in path[:-1]:
        raw = {str(key): item for key, item in _items(raw).items()}[name]
    return [name for name in map(str, _items(raw)) if name != path[-1]]


def _write_knobs_in_full(message: str, path: KeyPath, block: Any, composition: Composition) -> str:
    """Write a block's knobs as the user types them; the block does not know where it is mounted."""
    mounts = {".".join(split_mount(mounted)[1]): mounted for mounted in composition.choices}

    def write(word: re.Match[str], name: str) -> str:
        names = tuple(name.split(".")) if name else ()
        if names and names[0] not in block:
            return word[0]
        key = ".".join(composition.find_original((*path, *names)))
        # A block that a file fills is chosen by its mount: engine@score.scorers.judge.engine=vllm
        # The adapter of a round may have been chosen by nothing so far.
        is_round_adapter = re.fullmatch(r"train_in_round\.\d+\.adapter", key)
        return mounts.get(key, f"+adapter@{key}" if is_round_adapter else key)

    if not path or not isinstance(block, dict):
        return message
    message = OWN_KNOB.sub(lambda word: write(word, word[1]), message)
    return KNOB.sub(lambda word: write(word, word[0]), message)


def _find_longer_paths(key: KeyPath, composition: Composition, unknown: Set[KeyPath]) -> list[str]:
    """The knobs whose paths end with what was typed at the top: `train.beta` for `beta`."""
    leaves = [leaf for leaf, _ in iter_leaves(composition.raw)]
    typed = next((leaf for leaf in leaves if leaf[:1] == key), key)
    found = {
        ".".join(composition.find_original(leaf))
        for leaf in leaves
        if leaf[-len(typed) :] == typed and leaf[:1] not in unknown
    }
    return sorted(found, key=lambda path: (len(path), path))


def _describe_unknown(
    path: KeyPath, parent: dict[str, Any], known: list[str], longer: list[str]
) -> str:
    """A key that is not a knob: by an old name, without its group, or like a known name."""
    if renamed.rename(path)[-1] in known:
        return renamed.describe_renamed(path, iter_leaves(parent[path[-1]], path))
    is_of_training = path[:-1] == ("train",) or (path[0] == "train_in_round" and len(path) == 3)
    if is_of_training and (why := UNSUPPORTED.get(path[-1])):
        block = ".".join(path[:-1])
        return f"{'.'.join(path)} is refused: {name_own_knobs(why, block, block)}."
    if len(path) == 1 and longer:
        guess = " or ".join(longer[:MAX_GUESSES])
        return f"{path[0]} is not a knob of the config. Did you mean {guess}?"
    owner = f"stage '{path[0]}'" if len(path) > 1 else "the config"
    return f"{'.'.join(path)} is not a knob of {owner}. {suggest(path[-1], known)}"


def _suggest_scorers(key: str) -> str:
    """What to type where nothing scores yet."""
    if key == "score.scorers":
        return f"Choose who scores: score={SCORES} or language (docs/scoring.md)."
    return f"Give +scorer@{key}.NAME=FILE, with a file of conf/scorer/."


class ErrorLocation(NamedTuple):
    path: KeyPath
    parent: dict[str, Any]
    value: Any


def locate_error(loc: tuple[Any, ...], raw: Any) -> ErrorLocation:
    """The error's place in the raw config, without pydantic's tags for members of a union."""
    path: KeyPath = ()
    parent, value = raw, raw
    for index, item in enumerate(loc):
        is_key = isinstance(value, dict) and item in value
        if is_key or (isinstance(value, list) and isinstance(item, int)):
            parent, value = value, value[item]
        elif index == len(loc) - 1 and isinstance(value, dict) and item != value.get("kind"):
            parent, value = value, None  # a missing key
        else:
            continue
        path += (str(item),)
    return ErrorLocation(path, parent if isinstance(parent, dict) else {}, value)


def _sets_value(override: Any, path: KeyPath) -> bool:
    """Whether an override sets this key: directly, a part of it, or in a list or dict around it."""
    key, value = tuple(override.key_or_group.split(".")), override.value()
    if key[: len(path)] == path:
        return True
    if path[: len(key)] != key:
        return False
    for name in path[len(key) :]:
        items = {str(index): item for index, item in _items(value).items()}
        if name not in items:
            return False
        value = items[name]
    return True


def iter_leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from iter_leaves(item, (*path, str(name)))
    else:
        yield path, value
