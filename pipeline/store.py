"""The store: finished steps under `<stage>/<fingerprint>/`, unfinished ones beside them as `.partial`, one writer each.

A manifest is written last and one rename publishes; whatever has a whole manifest under its final name is finished.
A hollow step has been pruned: its manifest still says what was made, its files are gone until somebody reads them.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    ABSENT_FILE,
    ADAPTER_CONFIG,
    CARD_FILE,
    COST_FILE,
    MODEL_FILE,
    PLACE_FILE,
    Model,
    name_base,
    write_json,
)
from pipeline.artifacts import MANIFEST_FILE as MANIFEST
from pipeline.artifacts import STEP_FILE as STEP
from pipeline.content import content, sha256_of

PLAN = "plan.json"  # in a run: the fingerprints of all its Steps, built or not, which pruning keeps
SCRATCH = "scratch"  # a stage's own folder for checkpoints and the like: gone when the step is published
_OUTSIDE_CONTENT = {MANIFEST, STEP, COST_FILE, PLACE_FILE, CARD_FILE, f"adapter/{ADAPTER_CONFIG}"}

Manifest = dict[str, Any]


def folder(store: Path, stage: str, fingerprint: str) -> Path:
    return store / stage / fingerprint


def partial(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial")


def read_manifest(path: Path) -> Manifest | None:
    try:
        return json.loads((path / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def fault(
    path: Path, manifest: Manifest, inputs: dict[str, dict[str, str]], place: str | None = None, verify: bool = False
) -> str | None:
    """Why what lies at `path` does not count as built from these inputs, or None when it does."""
    if (path / PLACE_FILE).exists() and json.loads((path / PLACE_FILE).read_text())["weights"] != place:
        return f"moved: its checkpoint now lies at {place}"
    if absent(manifest):
        return "is looked for again: it was not to be had"
    for name, source in inputs.items():
        recorded = manifest["inputs"].get(name)
        if recorded is None or recorded["content"] != source["content"]:
            return f"stale: {source['stage']}/{source['fingerprint']} was rebuilt"
    for entry in [] if hollow(manifest) else manifest["files"]:
        file = path / entry["path"]
        if not file.is_file():
            return f"damaged: {entry['path']} is missing"
        if (size := file.stat().st_size) != entry["size"]:
            return f"damaged: {entry['path']} has {size} bytes, its manifest says {entry['size']}"
        if verify and sha256_of(file) != entry["sha256"]:
            return f"damaged: {entry['path']} has other bytes than its manifest says"
    return None


def absent(manifest: Manifest) -> bool:
    """Whether the step said why it could make nothing: that may have changed."""
    return any(entry["path"] == ABSENT_FILE for entry in manifest["files"])


def hollow(manifest: Manifest) -> bool:
    return manifest.get("hollow", False)


def hollow_out(path: Path, manifest: Manifest) -> None:
    """Remove a step's files. The mark comes first: what is killed on the way is hollow, never damaged."""
    write_json(path / MANIFEST, {**manifest, "hollow": True})
    for child in path.iterdir():
        if child.name == MANIFEST:
            continue
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()


def bases(path: Path) -> list[str]:
    """The fingerprints of what a model's weights lie on: an adapter names its base, which may do so too, and a pointer
    its target."""
    try:
        record = json.loads((path / MODEL_FILE).read_text())
        stage, _, fingerprint = (record.get("base") or record.get("target", "")).partition("/")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [fingerprint, *bases(path.parent.parent / stage / fingerprint)] if fingerprint else []


def name_bases(root: Path) -> None:
    """Repair the paths by which adapters name their base: a store that was moved has others, and so has a checkpoint
    outside it that was moved."""
    for file in root.absolute().glob(f"train/*/{MODEL_FILE}"):
        model = Model(file.parent)
        try:
            if "." not in file.parent.name and "peft" in model.record:
                name_base(model)
        except (OSError, ValueError, KeyError, TypeError):  # pruned, itself or its base, or no record of ours
            continue


def list_files(path: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if name in _OUTSIDE_CONTENT or name.startswith(f"{SCRATCH}/"):
            continue
        found.append({"path": name, "size": file.stat().st_size, "sha256": sha256_of(file)})
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
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    if final.exists():
        old = read_manifest(final)
        if old and (hollow(old) or absent(old)):
            shutil.rmtree(final)
    if final.exists():
        aside = final.with_name(f"{final.name}.old-{content(old) if old else 'unknown'}")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    work.rename(final)
    _sync(final.parent)


@contextmanager
def lock(final: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """One writer per step. The kernel drops the lock with its holder, so a stale lock cannot be."""
    file = final.parent / ".locks" / final.name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            waiting(handle.read() or "another process")
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        handle.truncate()
        handle.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
