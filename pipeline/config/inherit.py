"""Blocks that are chosen once and used in several places: `score` and `backend`.

A block in `SOURCES` has the values of its source, except for those that it is given itself. A block
for which a file is chosen (`backend@sample.backend=endpoint`) inherits nothing.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

KeyPath = tuple[str, ...]

SOURCES: dict[KeyPath, str] = {
    ("evaluate", "score"): "score",
    ("sample", "backend"): "backend",
    ("revise", "backend"): "backend",
    ("evaluate", "sample", "backend"): "backend",
}


def inherit_blocks(raw: dict[str, Any], choices: Mapping[str, str]) -> dict[KeyPath, KeyPath]:
    """Fill the blocks of `SOURCES` in a composed config.

    Returns which values are only copied, each with its original, where a fault is to be reported.
    """
    echoes: dict[KeyPath, KeyPath] = {}
    for path, source in SOURCES.items():
        parent = _find_parent(raw, path)
        if parent is None or source not in raw or f"{source}@{'.'.join(path)}" in choices:
            continue
        base = _keep_comparing(raw[source]) if source == "score" else raw[source]
        block = _merge(base, parent.get(path[-1]) or {})
        if source == "score":
            kept = {name: one for name, one in block["scorers"].items() if one is not None}
            block["scorers"] = kept
        parent[path[-1]] = block
        echoes |= _find_copies(block, raw[source], path, (source,))
    raw.pop("backend", None)  # those above have it now
    return echoes


def _find_parent(raw: dict[str, Any], path: KeyPath) -> dict[str, Any] | None:
    for name in path[:-1]:
        raw = raw.get(name) or {}
    return raw or None


def _merge(base: Any, own: Any) -> Any:
    """`own` over `base`; a block of another kind shares no knobs with it."""
    both_blocks = isinstance(base, dict) and isinstance(own, dict)
    if not both_blocks or ("kind" in own and own["kind"] != base.get("kind")):
        return own
    added = {name: value for name, value in own.items() if name not in base}
    return {
        name: _merge(value, own[name]) if name in own else deepcopy(value)
        for name, value in base.items()
    } | added


def _keep_comparing(score: dict[str, Any]) -> dict[str, Any]:
    """Without the scorers that only rank the answers of one model, and ensembles of these."""
    scorers = score["scorers"]
    ranking = {name for name, scorer in scorers.items() if _find_kind(scorer) == "pairwise"}
    ranking |= {
        name
        for name, scorer in scorers.items()
        if _find_kind(scorer) == "ensemble" and ranking & {*scorer.get("weights", ())}
    }
    return {**score, "scorers": {name: scorers[name] for name in scorers if name not in ranking}}


def _find_kind(scorer: Any) -> Any:
    return scorer.get("kind") if isinstance(scorer, dict) else None


def _find_copies(
    value: Any, original: Any, path: KeyPath, source: KeyPath
) -> dict[KeyPath, KeyPath]:
    """The largest parts of a value that equal the same part of its original."""
    if value == original:
        return {path: source}
    copies: dict[KeyPath, KeyPath] = {}
    if isinstance(value, dict) and isinstance(original, dict):
        for name in value.keys() & original.keys():
            part = _find_copies(value[name], original[name], (*path, name), (*source, name))
            copies |= part
    return copies
