"""What a recipe wrote for a file of conf/ goes with that file when another one is chosen.

`recipes=zephyr_7b offline=file` leaves out the recipe's `offline.source.dataset`, which only
conf/offline/hub.yaml has. What is typed stays, and is refused where it does not fit.
"""

from collections.abc import Mapping, Sequence
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
        if mounted == group and mounted not in chosen:
            continue  # Hydra does not list several files, as score=[math,length]; they share knobs
        was = _list_knobs(conf / group, old, place)
        replaced |= was - _list_knobs(conf / group, new, place) if new else was
    return replaced


def list_parents(recipe: str, roots: Sequence[Path]) -> list[str]:
    """All recipes that a recipe inherits and that choose files themselves."""
    parents = []
    for parent in (entry for entry in _read_defaults(recipe, roots) if isinstance(entry, str)):
        name = parent.removeprefix("/recipes/")
        if _read_defaults(name, roots):
            parents += [name, *list_parents(name, roots)]
    return parents


def _read_defaults(recipe: str, roots: Sequence[Path]) -> list[Any]:
    files = [root / f"{recipe}.yaml" for root in roots]
    file = next((file for file in files if file.is_file()), None)
    block = yaml.safe_load(file.read_text()) if file else None
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
