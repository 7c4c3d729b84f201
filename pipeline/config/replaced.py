"""What a recipe wrote for a file of conf/ goes with that file when another one is chosen.

`recipes=zephyr_7b offline=file` leaves out the recipe's `offline.source.dataset`, which only
conf/offline/hub.yaml has. What is typed stays, and is refused where it does not fit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.validation import KeyPath, iter_leaves, split_mount

GLOBAL = "# @package _global_"


def find_replaced(conf: Path, before: Mapping[str, Any], chosen: Mapping[str, Any]) -> set[KeyPath]:
    """The knobs of files that `before` chose, and that the files chosen now do not have."""
    replaced: set[KeyPath] = set()
    for mounted, old in before.items():
        group, place = split_mount(mounted)
        new = chosen.get(mounted)
        if old in (new, None) or group in ("recipes", "hardware") or "/" in group:
            continue
        was = _list_knobs(conf / group, old, place)
        replaced |= was - _list_knobs(conf / group, new, place) if new else was
    return replaced


def list_parents(recipe: Path) -> list[str]:
    """The recipes that a recipe inherits, by their names under recipes/."""
    entries = _read_defaults(recipe)
    names = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]
    return [name.removeprefix("/recipes/") for name in names]


def chooses_files(recipe: Path) -> bool:
    """Whether a recipe chooses files of conf/, or only gives values."""
    return bool(_read_defaults(recipe))


def _read_defaults(recipe: Path) -> list[Any]:
    block = yaml.safe_load(recipe.read_text()) if recipe.is_file() else None
    return block.get("defaults") or [] if isinstance(block, dict) else []


def _list_knobs(group: Path, choice: str, place: KeyPath) -> set[KeyPath]:
    """Where a file and those of its group that it inherits put values."""
    file = group / f"{choice}.yaml"
    if not file.is_file():
        return set()
    source = file.read_text()
    block = yaml.safe_load(source) or {}
    entries = block.pop("defaults", [])
    base = () if source.startswith(GLOBAL) else place
    knobs = {(*base, *path) for path, _ in iter_leaves(block)}
    for entry in entries:
        if isinstance(entry, str) and entry != "_self_":
            knobs |= _list_knobs(group, entry.removesuffix("@_here_"), place)
    return knobs
