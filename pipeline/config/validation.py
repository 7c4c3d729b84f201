"""pydantic judges what Hydra composed: every fault at once, each with who wrote it and what to write instead."""

import math
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError, suggest

Asked = TypeVar("Asked", bound=BaseModel)
Place = tuple[str, ...]
KNOB = re.compile(r"(?<![\w.@+~=-])([a-z_]\w*)(?:\.\w+)*(?==)")  # as in `runtime.launch=ddp`


@dataclass(frozen=True)
class Written:
    """What was composed, from which files of conf/ (`choices`), under which overrides of Hydra's parser (`typed`)."""

    raw: dict[str, Any]
    choices: dict[str, str]
    typed: list[Any]

    def file(self, place: Place) -> str:
        """The file in conf/ that writes this block: the longest mounted group that holds it."""
        best, file = 0, "conf/config.yaml"
        for mounted, choice in self.choices.items():
            group, _, package = mounted.partition("@")
            of = tuple((package or group).split("."))
            if place[: len(of)] == of and len(of) > best and group != "recipes":
                best, file = len(of), f"conf/{group}/{choice}.yaml"
        return file

    def source(self, place: Place) -> str:
        if any(_gives(override, place) for override in self.typed):
            return "command line"
        return (
            f"recipes/{self.choices['recipes']}.yaml"
            if "recipes" in self.choices
            else self.file(place)
        )


def validated(written: Written, shape: type[Asked], echoes: Set[Place] = frozenset()) -> Asked:
    """The config, or every fault at once; `echoes` are values taken over from elsewhere, where their fault is said."""
    if absent := [".".join(place) for place, value in leaves(written.raw) if value == "???"]:
        raise UserError("\n".join(f"{key} has no value yet. Give {key}=VALUE" for key in absent))
    try:
        checked = shape.model_validate(written.raw)
    except ValidationError as error:
        errors = _once(_errors(error), written.raw)
        unknown, alone = (
            _places(errors, kind, written.raw) for kind in ("extra_forbidden", "lone")
        )
        errors += _behind(unknown, alone, errors, written.raw, shape)
        own = [e for e in errors if not _echoed(_located(e["loc"], written.raw).place, echoes)]
        names = _Names(unknown, _places(errors, "missing", written.raw))
        faults = dict.fromkeys(_fault(e, written, names) for e in own or errors)
        raise UserError("\n".join(faults)) from error
    if infinite := list(
        _find_infinite(written.raw)
    ):  # where any JSON may stand, which has no such numbers
        raise UserError(
            "\n".join(_describe_infinite(written, place, value) for place, value in infinite)
        )
    return checked


def _find_infinite(value: Any, place: Place = ()) -> Iterator[tuple[Place, float]]:
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, item in inside:
        yield from _find_infinite(item, (*place, str(name)))
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value


def _describe_infinite(written: Written, place: Place, value: float) -> str:
    key = ".".join(place)
    return f"{written.source(place)}: {key}={value}: a finite number was expected.  ({written.file(place)})"


class _Names(NamedTuple):
    """What nobody knows, and what is known and was left out."""

    unknown: Set[Place]
    missing: Set[Place]

    def known(self, parent: dict[str, Any], beside: Place) -> list[str]:
        left_out = [place[-1] for place in self.missing if place[:-1] == beside]
        return [name for name in parent if (*beside, name) not in self.unknown] + left_out


def _places(errors: list[Any], kind: str, raw: Any) -> Set[Place]:
    return {_located(e["loc"], raw).place for e in errors if e["type"] == kind}


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False))


def _echoed(place: Place, echoes: Set[Place]) -> bool:
    return any(place[: len(echo)] == echo for echo in echoes)


def _once(errors: list[Any], raw: Any) -> list[Any]:
    """What no alternative takes, such as `auto` or a number, is one fault; so is one value where a list is wanted."""
    found: dict[Any, Any] = {}
    for number, error in enumerate(errors):
        place, _, value = _located(error["loc"], raw)
        is_leaf = isinstance(value, str | int | float) and error["type"] != "unshown"
        if error["type"] == "list_type" and is_leaf:
            error = {**error, "type": "lone"}
        known = found.setdefault(place if is_leaf else number, error)
        if known is not error:
            said = f"{known['msg']} or {error['msg'].removeprefix('Input should be ')}"
            found[place] = {**known, "type": "alternatives", "msg": said}
    return list(found.values())


def _behind(
    unknown: Set[Place],
    alone: Set[Place],
    said: list[Any],
    raw: dict[str, Any],
    shape: type[BaseModel],
) -> list[Any]:
    """The faults that pydantic looks for only in blocks without unknown keys, and in lists that are lists."""
    if not unknown and not alone:
        return []
    try:
        shape.model_validate(_mended(raw, unknown, alone))
    except ValidationError as error:
        known = {(e["loc"], e["type"]) for e in said}
        return [e for e in _once(_errors(error), raw) if (e["loc"], e["type"]) not in known]
    return []


def _mended(value: Any, unknown: Set[Place], alone: Set[Place], here: Place = ()) -> Any:
    if isinstance(value, list):
        return [
            _mended(item, unknown, alone, (*here, str(index))) for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        return [value] if here in alone else value
    inside = ((name, item, (*here, str(name))) for name, item in value.items())
    return {
        name: _mended(item, unknown, alone, place)
        for name, item, place in inside
        if place not in unknown
    }


def _fault(error: Any, written: Written, names: _Names) -> str:
    place, parent, value = _located(error["loc"], written.raw)
    key, file, source = ".".join(place), written.file(place), written.source(place)
    match error["type"]:
        case "extra_forbidden":
            of = f"stage '{place[0]}'" if len(place) > 1 else "the config"
            known = suggest(place[-1], names.known(parent, place[:-1]))
            return f"{source}: {key} is not a knob of {of}. {known}  ({file})"
        case "missing" | "union_tag_not_found" if file.endswith("/none.yaml"):
            at, group = written.source(place[:1]), place[0]
            return f"{at}: {group} is none, which takes no knobs. Choose another file of conf/{group}/.  ({file})"
        case "missing":
            return f"{source}: {key} is missing.  ({file})"
        case "union_tag_not_found":
            return f"{source}: {key}.kind is missing.  ({file})"
        case "too_short" if place[-1] == "scorers":
            return f"{source}: {key} is empty. Give +scorer@{key}.NAME=FILE, with a file of conf/scorer/.  ({file})"
        case "lone":
            return f"{source}: {key}={value}: a list was expected; it stands in brackets: {key}=[{value}].  ({file})"
        case "unshown":
            return f"{source}: {key}: {error['msg']}.  ({file})"
        case _:
            said = _in_full(error["msg"].removeprefix("Value error, "), place, value, written)
            shown = (
                f"{key}={value!r}: " if not isinstance(value, dict) else f"{key}: " if key else ""
            )
            return f"{source}: {shown}{said}.  ({file})" if key else said


def _in_full(said: str, place: Place, block: Any, written: Written) -> str:
    """A block names its own knobs without knowing where it is mounted; here they become what a person types."""
    mounts = {mount.partition("@")[2] or mount: mount for mount in written.choices}

    def full(word: re.Match[str]) -> str:
        if word[1] not in block:
            return word[0]
        key = ".".join((*place, word[0]))
        return mounts.get(
            key, key
        )  # a block that a file fills is chosen by its mount: adapter@train.adapter=lora

    return KNOB.sub(full, said) if place and isinstance(block, dict) else said


class Located(NamedTuple):
    place: Place
    parent: dict[str, Any]
    value: Any


def _located(loc: tuple[Any, ...], raw: Any) -> Located:
    """The error's place in what was written: pydantic's own tags (which union member) are not in it."""
    place: Place = ()
    parent, here = raw, raw
    for index, item in enumerate(loc):
        inside = (isinstance(here, dict) and item in here) or (
            isinstance(here, list) and isinstance(item, int)
        )
        if inside:
            parent, here = here, here[item]
        elif index == len(loc) - 1 and isinstance(here, dict) and item != here.get("kind"):
            parent, here = here, None  # a missing key
        else:
            continue
        place += (str(item),)
    return Located(place, parent if isinstance(parent, dict) else {}, here)


def _gives(override: Any, place: Place) -> bool:
    """Whether it writes what stands at this place: by itself, a part of it, or a list or dict that holds it."""
    of, value = tuple(override.key_or_group.split(".")), override.value()
    if of[: len(place)] == place or place[: len(of)] != of:
        return of[: len(place)] == place
    for name in place[len(of) :]:
        inside = (
            dict(enumerate(value))
            if isinstance(value, list)
            else value
            if isinstance(value, dict)
            else {}
        )
        key = next((key for key in inside if str(key) == name), None)
        if key is None:
            return False
        value = inside[key]
    return True


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*place, str(name)))
    else:
        yield place, value
