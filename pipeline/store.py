"""The store: finished steps under `<stage>/<fingerprint>/`, unfinished ones beside them as `.partial`, one writer each.

A manifest is written last and one rename publishes; whatever has a whole manifest under its final name is finished.
A hollow step has been pruned: its manifest still says what was made, its files are gone until somebody reads them.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    ADAPTER_CONFIG,
    CARD_FILE,
    COST_FILE,
    MODEL_FILE,
    PLACE_FILE,
    UNAVAILABLE_FILE,
    Model,
    read_json,
    write_adapter_config,
    write_json,
)
from pipeline.artifacts import MANIFEST_FILE as MANIFEST
from pipeline.artifacts import STEP_FILE as STEP
from pipeline.errors import UserError, explain_disk_fault
from pipeline.hashing import hash_content, hash_file

PLAN = "plan.json"  # in a run: the fingerprints of all its Steps, built or not, which pruning keeps
SCRATCH = (
    "scratch"  # a stage's own folder for checkpoints and the like: gone when the step is published
)
_OUTSIDE_CONTENT = {MANIFEST, STEP, COST_FILE, PLACE_FILE, CARD_FILE, f"adapter/{ADAPTER_CONFIG}"}
# Beside a finished step's files: what merging makes, a stage's scratch, and what a killed writer left.
_EXTRA_FILES = re.compile(r"merged/|\.merged\.tmp/|scratch/|(.*/)?\.[^/]+\.tmp$")
LOCK_FILE = ".at-work"  # in the store: held shared by every run, and alone by who removes something
STEP_NAME = re.compile(r"[0-9a-f]{12}")  # a finished step's folder
REMOVED_SUFFIX = ".removed"  # ends the name of what is being removed

Manifest = dict[str, Any]
_MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str,
    "fingerprint": str,
    "inputs": dict,
    "config": dict,
    "files": list,
    "cost": dict,
    "seconds": (int, float),
    "hollow": bool,
}
_FILE_TYPES = {"path": str, "size": int, "sha256": str}


def step_folder(store: Path, stage: str, fingerprint: str) -> Path:
    return store / stage / fingerprint


def partial_folder(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial")


def read_manifest(path: Path) -> Manifest | None:
    """What lies at `path`, as its manifest has it; None where there is none, or none that can be trusted."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(explain_disk_fault(error, file) or str(error)) from error
    return manifest if _is_manifest(manifest) else None


def read_valid_manifest(path: Path) -> Manifest | None:
    """A manifest for figures alone: one that cannot be read is one that is not there."""
    try:
        manifest = read_manifest(path)
    except UserError:
        return None
    return manifest if manifest and not find_missing_keys(manifest) else None


def find_missing_keys(manifest: Manifest) -> list[str]:
    """What every published manifest has, and this one lacks."""
    return [name for name in _MANIFEST_TYPES if name not in manifest and name != "hollow"]


def _is_manifest(value: Any) -> bool:
    if not isinstance(value, dict) or "files" not in value:
        return False
    if not all(
        isinstance(value[name], kind) for name, kind in _MANIFEST_TYPES.items() if name in value
    ):
        return False
    inputs = value.get("inputs", {}).values()
    recorded = all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in inputs)
    return recorded and all(_is_file_entry(entry) for entry in value["files"])


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(name), kind) for name, kind in _FILE_TYPES.items()
    ):
        return False
    parts = entry["path"].split("/")
    plain = entry["path"].isprintable() and all(0 < len(part.encode()) < 256 for part in parts)
    return plain and not {".", ".."} & set(parts) and entry["size"] >= 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def find_fault(
    path: Path,
    manifest: Manifest,
    inputs: dict[str, dict[str, str]],
    place: str | None = None,
    verify: bool = False,
) -> str | None:
    """Why what lies at `path` does not count as built from these inputs, or None when it does."""
    if lacking := find_missing_keys(manifest):
        return f"damaged: its manifest has no {lacking[0]}"
    if (path / PLACE_FILE).exists() and _read_place(path) != place:
        return f"moved: its checkpoint now lies at {place}"
    if is_unavailable(manifest):
        return "is looked for again: it was not to be had"
    for name, source in inputs.items():
        recorded = manifest["inputs"].get(name)
        if recorded is None or recorded["content"] != source["content"]:
            return f"stale: {source['stage']}/{source['fingerprint']} was rebuilt"
    for entry in [] if is_pruned(manifest) else manifest["files"]:
        file = path / entry["path"]
        if not file.is_file():
            return f"damaged: {entry['path']} is missing"
        if (size := file.stat().st_size) != entry["size"]:
            return f"damaged: {entry['path']} has {size} bytes, its manifest says {entry['size']}"
        if verify and hash_file(file) != entry["sha256"]:
            return f"damaged: {entry['path']} has other bytes than its manifest says"
    return None


def _read_place(path: Path) -> str | None:
    try:
        recorded = read_json(path / PLACE_FILE)
    except UserError:
        return None
    return recorded.get("weights") if isinstance(recorded, dict) else None


def find_changed_tables(path: Path, part: str | None = None) -> list[Path]:
    """The tables and records of a finished step whose bytes are not those that its manifest names."""
    manifest = read_valid_manifest(path)
    if manifest is None or is_pruned(manifest):
        return []
    entries = [e for e in manifest["files"] if part is None or e["path"].startswith(f"{part}/")]
    tables = [e for e in entries if e["path"].endswith((".parquet", ".json", ".jsonl"))]
    return [path / e["path"] for e in tables if _has_changed(path / e["path"], e["sha256"])]


def _has_changed(file: Path, sha256: str) -> bool:
    try:
        return hash_file(file) != sha256
    except OSError:
        return True


def is_unavailable(manifest: Manifest) -> bool:
    """Whether the step said why it could make nothing: that may have changed."""
    return any(entry["path"] == UNAVAILABLE_FILE for entry in manifest["files"])


def is_pruned(manifest: Manifest) -> bool:
    return manifest.get("hollow", False)


def prune(path: Path, manifest: Manifest) -> None:
    """Remove a step's files. The mark comes first: what is killed on the way is hollow, never damaged."""
    write_json(path / MANIFEST, {**manifest, "hollow": True})
    for child in path.iterdir():
        if child.name == MANIFEST:
            continue
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()


def find_foreign_files(path: Path, manifest: Manifest) -> list[Path]:
    """Files in a finished step that neither the step nor a command of ours put there: somebody keeps them there.

    A link is none: what it leads to is not lost with it.
    """
    own = {entry["path"] for entry in manifest["files"]} | _OUTSIDE_CONTENT
    inside = (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    named = ((file, file.relative_to(path).as_posix()) for file in inside)
    return [file for file, name in named if name not in own and not _EXTRA_FILES.match(name)]


def list_bases(path: Path) -> list[str]:
    """The fingerprints of what a model's weights lie on: an adapter names its base, which may do so too, and a pointer
    its target."""
    try:
        record = read_json(path / MODEL_FILE)
        stage, _, fingerprint = (record.get("base") or record.get("target", "")).partition("/")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return (
        [fingerprint, *list_bases(path.parent.parent / stage / fingerprint)] if fingerprint else []
    )


def rewrite_adapter_configs(root: Path) -> None:
    """Repair the paths by which adapters name their base: a store that was moved has others, and so has a checkpoint
    outside it that was moved."""
    for file in root.absolute().glob(f"train/*/{MODEL_FILE}"):
        model = Model(file.parent)
        try:
            if "." not in file.parent.name and "peft" in model.record:
                write_adapter_config(model)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ):  # pruned, itself or its base, or no record of ours
            continue


def list_files(path: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if name in _OUTSIDE_CONTENT or name.startswith(f"{SCRATCH}/"):
            continue
        found.append({"path": name, "size": file.stat().st_size, "sha256": hash_file(file)})
    return found


def seal(work: Path, manifest: Manifest) -> None:
    """Sync every file, then write the manifest: from here on the step is finished, whatever is killed."""
    for entry in manifest["files"]:
        _sync(work / entry["path"])
    for place in {(work / entry["path"]).parent for entry in manifest["files"]}:
        _sync(place)
    write_json(work / MANIFEST, manifest)
    _sync(work)


def publish(work: Path, final: Path) -> None:
    """One rename; what lay there before (stale or damaged) steps aside under its content's name."""
    check_places([final])
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    if final.exists():
        old = read_manifest(final)
        if old and (is_pruned(old) or is_unavailable(old)) and not find_foreign_files(final, old):
            remove(final)
    if final.exists():
        set_aside(final, hash_content(old) if old else "unknown")
    work.rename(final)
    _sync(final.parent)


def check_places(finals: Iterable[Path]) -> None:
    """Where a step's folder belongs, nothing else may be: a symlink there leads to a folder that is not the store's."""
    for place in (place for final in finals for place in (final, partial_folder(final))):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            kind = "a symlink" if place.is_symlink() else "a file"
            raise UserError(
                f"{place}: {kind} is there, where the store keeps a step's folder. The store did not make it.\n"
                f"  Move it away, and run the same command again: mv {place} ELSEWHERE"
            )


def set_aside(path: Path, name: str) -> None:
    """What must make room is kept until somebody prunes; `unknown` is what cannot say its content."""
    fingerprint = path.name.partition(".")[0]
    aside = path.with_name(f"{fingerprint}.old-{name}")
    if aside.exists():
        remove(aside)
    path.rename(aside)


def remove(path: Path) -> None:
    """A step's folder goes, first by name: what is killed on the way can be taken for nothing else."""
    gone = path.with_name(path.name.partition(".")[0] + REMOVED_SUFFIX)
    if gone != path:
        if gone.exists():
            shutil.rmtree(gone)
        path.rename(gone)
    shutil.rmtree(gone)


@contextmanager
def lock_step(final: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """One writer per step. The kernel drops the lock with its holder, so a stale lock cannot be."""
    file = final.parent / ".locks" / final.name
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        lock_shared(final.parent.parent, lambda: waiting("a prune of the store")),
        file.open("a+") as handle,
    ):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            waiting(handle.read() or "another process")
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(
            f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        )
        handle.flush()
        yield


@contextmanager
def lock_shared(root: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """While a run holds this, nobody removes anything from the store; runs hold it together."""
    with (root / LOCK_FILE).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def lock_exclusive(root: Path) -> Iterator[None]:
    """While this is held no run is at work in the store, and none begins."""
    with (root / LOCK_FILE).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{root}: a run is at work{_name_step_in_progress(root)}. Nothing was removed. Prune when no run is at work."
            ) from error
        yield


def _name_step_in_progress(root: Path) -> str:
    """The first step that is being built, asked lock by lock: a store may have more of them than files may be open."""
    for file in sorted(root.glob("*/.locks/*")):
        with file.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return f" ({file.parent.parent.name}/{file.name} is being built)"
    return ""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
