"""Blocks that are chosen once and used in several places: `score`, `backend`, `sample.settings`.

A block in `SOURCES` has the values of its source, except for those that it is given itself. A block
for which a file is chosen (`backend@sample.backend=endpoint`) inherits nothing.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

KeyPath = tuple[str, ...]

SOURCES: dict[KeyPath, KeyPath] = {
    ("evaluate", "score"): ("score",),
    ("sample", "backend"): ("backend",),
    ("revise", "backend"): ("backend",),
    ("evaluate", "sample", "backend"): ("backend",),
}


def inherit_blocks(raw: dict[str, Any], choices: Mapping[str, str]) -> dict[KeyPath, KeyPath]:
    """Fill the blocks of `SOURCES` in a composed config.

    Returns which values are only copied, each with its original, where a fault is to be reported.
    """
    echoes: dict[KeyPath, KeyPath] = {}
    for path, source in [*SOURCES.items(), *_list_pool_sources(raw), *_list_round_sources(raw)]:
        parent = _find_parent(raw, path)
        original = (_find_parent(raw, source) or {}).get(source[-1])
        if parent is None or original is None or f"{source[-1]}@{'.'.join(path)}" in choices:
            continue
        base = _keep_comparing(original) if source == ("score",) else original
        block = _merge(base, parent.get(path[-1]) or {})
        if source == ("score",):
            block["scorers"] = _drop_null(block["scorers"])
        elif path[-1] == "settings":
            block = _drop_null(block)
        parent[path[-1]] = block
        echoes |= _find_copies(block, original, path, source)
    raw.pop("backend", None)  # those above have it now
    return echoes


def _list_pool_sources(raw: dict[str, Any]) -> Iterator[tuple[KeyPath, KeyPath]]:
    """A member of the pool samples as the policy does; a served one by its server alone."""
    pool = (_find_parent(raw, ("sample", "pool")) or {}).get("pool")
    for name, member in pool.items() if isinstance(pool, dict) else ():
        if not isinstance(member, dict):
            continue
        if member.get("kind") == "checkpoint":
            yield ("sample", "pool", name, "backend"), ("sample", "backend")
        yield ("sample", "pool", name, "settings"), ("sample", "settings")


def _list_round_sources(raw: dict[str, Any]) -> Iterator[tuple[KeyPath, KeyPath]]:
    """A round has the adapter of `train`, which `compose` gives it: its other knobs read it."""
    rounds = raw.get("train_in_round")
    for number, block in rounds.items() if isinstance(rounds, dict) else ():
        if not isinstance(block, dict):
            continue
        yield ("train_in_round", number, "adapter"), ("train", "adapter")


def _drop_null(blocks: Any) -> Any:
    """A name without a block leaves out the one that it would inherit."""
    return {name: one for name, one in blocks.items() if one is not None}


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
