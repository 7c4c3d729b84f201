"""The store: finished steps are `<stage>/<fingerprint>/`, unfinished ones end in `.partial`.

Each step has one writer. The manifest is written last and one rename publishes: a folder with a
whole manifest under its final name is finished. A pruned step keeps its manifest but not its files;
they are rebuilt when a step that runs reads them.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.artifacts import (
    ADAPTER_CONFIG,
    CARD_FILE,
    COST_FILE,
    DEVICES_FILE,
    MADE_BY,
    MODEL_FILE,
    PLACE_FILE,
    UNAVAILABLE_FILE,
    Model,
    find_step,
    find_store,
    read_json,
    read_object,
    write_adapter_config,
    write_json,
)
from pipeline.artifacts import MANIFEST_FILE as MANIFEST
from pipeline.artifacts import STEP_FILE as STEP
from pipeline.errors import FAILED, StageError, UserError, explain_disk_fault, format_move
from pipeline.hashing import hash_content, hash_file
from pipeline.progress import print_faults
from pipeline.resources import leases

PLAN = "plan.json"  # in a run: the fingerprints of all its Steps, which pruning keeps
SCRATCH = "scratch"  # a stage's folder for checkpoints and the like, removed before publishing
# In unfinished work: the files that its last attempt left when it failed.
ATTEMPT = f"{SCRATCH}/attempt.json"
OUTSIDE = "outside.json"  # in a finished step: the files that we wrote outside its content
_FILES_OUTSIDE = {COST_FILE, DEVICES_FILE, PLACE_FILE, CARD_FILE, f"adapter/{ADAPTER_CONFIG}"}
_OUTSIDE_CONTENT = {MANIFEST, STEP, OUTSIDE, *_FILES_OUTSIDE}
MERGE_SCRATCH = re.compile(r"\.merged\.[^/]*tmp/")  # what a killed merge leaves in a step
IN_USE = ".in-use"  # in the store: a lease of every run that is at work, and of a prune
LEASES = ".leases"  # in a stage's folder: who builds which step
STEP_NAME = re.compile(r"[0-9a-f]{12}")  # a finished step's folder
STEP_PATH = re.compile(rf"(?P<stage>{'|'.join(MADE_BY)})/(?P<fingerprint>[0-9a-f]{{12}})\b")
PARTIAL_SUFFIX = ".partial"  # ends the name of a folder of unfinished work
REMOVED_SUFFIX = ".removed"  # ends the name of a folder that is being removed

Manifest = dict[str, Any]
_MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    "stage": str,
    "fingerprint": str,
    "inputs": dict,
    "config": dict,
    "files": list,
    "cost": dict,
    "seconds": (int, float),
    "pruned": bool,
}
_FILE_TYPES = {"path": str, "size": int, "sha256": str}


def step_folder(store: Path, stage: str, fingerprint: str) -> Path:
    return store / stage / fingerprint


def partial_folder(final: Path) -> Path:
    return final.with_name(f"{final.name}{PARTIAL_SUFFIX}")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None where it is missing or cannot be trusted."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes(), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(explain_disk_fault(error, file) or str(error)) from error
    return manifest if _is_manifest(manifest) else None


def read_valid_manifest(path: Path) -> Manifest | None:
    """A manifest for statistics: one that cannot be read counts as missing."""
    try:
        manifest = read_manifest(path)
    except UserError:
        return None
    return manifest if manifest and not find_missing_keys(manifest) else None


def list_valid_manifests(roots: Iterable[Path], stage: str) -> list[Manifest]:
    """Of a stage's finished steps in these stores, the newest first."""
    found = (path for root in roots for path in (root / stage).glob("*/"))
    folders = (path for path in found if STEP_NAME.fullmatch(path.name))
    manifests = [manifest for path in folders if (manifest := read_valid_manifest(path))]
    return sorted(manifests, key=lambda manifest: str(manifest["created"]), reverse=True)


def find_missing_keys(manifest: Manifest) -> list[str]:
    """The keys of every published manifest that this one lacks."""
    return [name for name in _MANIFEST_TYPES if name not in manifest and name != "pruned"]


def _is_manifest(value: Any) -> bool:
    if not isinstance(value, dict) or "files" not in value:
        return False
    present = [name for name in _MANIFEST_TYPES if name in value]
    if not all(isinstance(value[name], _MANIFEST_TYPES[name]) for name in present):
        return False
    inputs = value.get("inputs", {}).values()
    has_contents = all(isinstance(i, dict) and isinstance(i.get("content"), str) for i in inputs)
    return has_contents and all(_is_file_entry(entry) for entry in value["files"])


def _is_file_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    if not all(isinstance(entry.get(name), kind) for name, kind in _FILE_TYPES.items()):
        return False
    parts = entry["path"].split("/")
    is_name = entry["path"].isprintable() and all(0 < len(part.encode()) < 256 for part in parts)
    return is_name and not {".", ".."} & set(parts) and entry["size"] >= 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def find_fault(
    path: Path,
    manifest: Manifest,
    inputs: dict[str, dict[str, str]],
    place: str | None = None,
    verify: bool = False,
) -> str | None:
    """Why the step at `path` does not count as built from these inputs; None if it does."""
    if lacking := find_missing_keys(manifest):
        return f"damaged: its manifest has no {lacking[0]}"
    if (path / PLACE_FILE).exists() and _read_place(path) != place:
        return f"moved: its checkpoint is now at {place}"
    if is_unavailable(manifest):
        return "is tried again: it was unavailable"
    for name, source in inputs.items():
        recorded = manifest["inputs"].get(name)
        if recorded is None or recorded["content"] != source["content"]:
            return f"stale: {source['stage']}/{source['fingerprint']} was rebuilt"
    return find_damage(path, manifest, verify)


def find_damage(path: Path, manifest: Manifest, verify: bool = False) -> str | None:
    """Which file of a step is not as its manifest says; None if all are. `verify`: hash them."""
    for entry in [] if is_pruned(manifest) else manifest["files"]:
        file = path / entry["path"]
        if not file.is_file():
            return f"damaged: {entry['path']} is missing"
        if (size := file.stat().st_size) != entry["size"]:
            return f"damaged: {entry['path']} has {size} bytes, its manifest says {entry['size']}"
        if verify and hash_file(file) != entry["sha256"]:
            return f"damaged: {entry['path']} does not have the bytes that its manifest says"
    return None


def _read_place(path: Path) -> str | None:
    try:
        recorded = read_json(path / PLACE_FILE)
    except UserError:
        return None
    return recorded.get("weights") if isinstance(recorded, dict) else None


def find_changed_tables(path: Path, part: str | None = None) -> list[Path]:
    """The tables and JSON files of a finished step whose bytes differ from its manifest."""
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
    """Whether the step made nothing but the reason why it could not. That may have changed."""
    return any(entry["path"] == UNAVAILABLE_FILE for entry in manifest["files"])


def is_pruned(manifest: Manifest) -> bool:
    return manifest.get("pruned", False)


def prune(path: Path, manifest: Manifest) -> None:
    """Remove a step's files, after noting it in the manifest: a killed prune damages nothing."""
    if reason := explain_foreign_files(path):
        raise UserError(f"{path}: {reason}. Nothing in it was removed.")
    write_json(path / MANIFEST, {**manifest, "pruned": True})
    for child in path.iterdir():
        if child.name == MANIFEST:
            continue
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()


def explain_foreign_files(path: Path) -> str:
    """Why a folder must stay: it has a file that the store did not write. Empty if it has none.

    Whatever removes or replaces a folder of the store asks this first.
    """
    foreign = find_foreign_files(path)
    if not foreign:
        return ""
    if read_manifest(path) is None and path.suffix != PARTIAL_SUFFIX:
        return f"has no {MANIFEST} that can be read, so it is unknown what the store wrote"
    return f"has {foreign[0].relative_to(path).as_posix()}, which the store did not write"


def find_foreign_files(path: Path) -> list[Path]:
    """The files in a step's folder that the store did not write, as far as it has a list.

    A manifest lists what the step made. Unfinished work has a list where its last attempt failed;
    where that was killed, all files count as the stage's. In any other folder without a manifest
    that can be read, every file counts as foreign.
    Links do not count: removing one does not remove what it leads to.
    """
    if path.name.endswith(REMOVED_SUFFIX):
        return []
    inside = (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    names = [file.relative_to(path).as_posix() for file in inside]
    if path.suffix == PARTIAL_SUFFIX:
        names = [name for name in names if not name.startswith(f"{SCRATCH}/")]
    if manifest := read_manifest(path):
        outside = _read_names(path / OUTSIDE)
        if outside is None:
            outside = dict.fromkeys(_FILES_OUTSIDE)  # of an older version, without a list
        ours = {MANIFEST, STEP, OUTSIDE, *(entry["path"] for entry in manifest["files"])}
        ours |= {name for name in outside if not _is_edited(path / name, outside[name])}
    elif path.suffix == PARTIAL_SUFFIX:
        attempt = _read_names(path / ATTEMPT)
        ours = {STEP, *(names if attempt is None else attempt)}
    else:
        ours = set()
    return [path / name for name in sorted(names) if not _is_written(name, ours)]


def _is_written(name: str, ours: set[str]) -> bool:
    """Whether a name is one of ours, or what a killed writer of it or a killed merge left."""
    folder, slash, last = name.rpartition("/")
    is_scratch = last.startswith(".") and last.endswith(".tmp")
    whole = f"{folder}{slash}{last[1:-4]}" if is_scratch else name
    return name in ours or whole in ours or bool(MERGE_SCRATCH.match(name))


def _is_edited(file: Path, sha256: str | None) -> bool:
    return sha256 is not None and file.is_file() and hash_file(file) != sha256


def _read_names(file: Path) -> dict[str, str | None] | None:
    try:
        names = read_json(file)
    except (OSError, UserError):
        return None
    return names if isinstance(names, dict) else None


def note_attempt(work: Path) -> None:
    """List the files of an attempt that failed, to tell them from what the user adds to them."""
    files = [file.relative_to(work).as_posix() for file in work.rglob("*") if file.is_file()]
    write_json(work / ATTEMPT, dict.fromkeys(sorted(files)))


def note_outside(path: Path, names: Iterable[str]) -> None:
    """List what the stage, or later one of our commands, writes outside the step's content.

    The card has a hash: the user may edit it.
    """
    hashes = {name: hash_file(path / name) if name == CARD_FILE else None for name in names}
    write_json(path / OUTSIDE, {**(_read_names(path / OUTSIDE) or {}), **hashes})


def list_bases(path: Path) -> list[str]:
    """The fingerprints of the steps that a model's weights need.

    An adapter names its base, which may be an adapter too; a gate names the model that it chose.
    """
    try:
        record = read_object(path / MODEL_FILE)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return []  # a damaged record is found where its step is checked or read
    named = record.get("base") or record.get("target")
    if not isinstance(named, str):
        return []
    fingerprint = named.partition("/")[2]
    if not fingerprint:
        return []
    return [fingerprint, *list_bases(find_step(find_store(path), named))]


def rewrite_adapter_configs(root: Path) -> None:
    """Repair the path of the base in each adapter's config.

    The store may have been moved, and so may a checkpoint outside it. What the user named instead
    stays.
    """
    files = (root.absolute().glob(f"{stage}/*/{MODEL_FILE}") for stage in ("train", "merge"))
    for file in chain.from_iterable(files):
        model = Model(file.parent)
        try:
            is_adapter = STEP_NAME.fullmatch(file.parent.name) and "peft" in model.record
            if is_adapter and not _is_base_renamed(model):
                write_adapter_config(model)
        except (UserError, OSError, ValueError, KeyError, TypeError):
            continue  # it or its base was pruned, damaged, or the record is not ours


def _is_base_renamed(model: Model) -> bool:
    """Whether the user gave an adapter's base another name: one that a moved store does not have.

    We name a step of the store, or a checkpoint by a path that is gone once it was moved.
    """
    file = model.path / model.record["adapter"] / ADAPTER_CONFIG
    if not file.is_file():
        return False
    name = str(read_json(file).get("base_model_name_or_path"))
    is_gone = Path(name).is_absolute() and not Path(name).exists()
    return model.record["base"] not in name and not is_gone


def list_files(path: Path) -> list[dict[str, Any]]:
    entries = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if name in _OUTSIDE_CONTENT or name.startswith(f"{SCRATCH}/"):
            continue
        entries.append({"path": name, "size": file.stat().st_size, "sha256": hash_file(file)})
    return entries


def seal(work: Path, manifest: Manifest) -> None:
    """List and sync every file, then write the manifest. From here on the step is finished."""
    note_outside(work, (name for name in sorted(_FILES_OUTSIDE) if (work / name).is_file()))
    for entry in manifest["files"]:
        _sync(work / entry["path"])
    for place in {(work / entry["path"]).parent for entry in manifest["files"]}:
        _sync(place)
    write_json(work / MANIFEST, manifest)
    _sync(work)


def claim_work_folder(final: Path, lease: leases.Lease) -> Path:
    """The folder of a step's unfinished work, for the holder of its lease.

    Where the holder before may still run, the folder gets a new name: what that writes from then on
    goes nowhere, and it cannot publish what is ours.
    """
    latest = find_work_folder(final)
    if not lease.may_be_contested:
        return latest
    own = final.with_name(f"{final.name}.taken-{lease.generation:06d}{PARTIAL_SUFFIX}")
    if latest.exists():
        latest.rename(own)
    return own


def find_work_folder(final: Path) -> Path:
    """Where a step's unfinished work is now, or would be."""
    taken = sorted(final.parent.glob(f"{final.name}.taken-*{PARTIAL_SUFFIX}"))
    return taken[-1] if taken else partial_folder(final)


def publish(work: Path, final: Path) -> None:
    """Publish by one rename. A stale or damaged predecessor is set aside under its content hash."""
    check_places([final])
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    if not work.exists():
        raise StageError(
            f"{final}: another process has taken this step over.\n  Run the same command again."
        )
    make_room(final)
    work.rename(final)
    _sync(final.parent)


def make_room(final: Path) -> None:
    """Set a stale or damaged step aside, and remove one that has no files."""
    if not final.exists():
        return
    old = read_manifest(final)
    if old and (is_pruned(old) or is_unavailable(old)):
        clear_place(final, hash_content(old))
    else:
        set_aside(final, hash_content(old) if old else "unknown")


def check_places(finals: Iterable[Path]) -> None:
    """Refuse a symlink or file in a step's place: a symlink may lead out of the store.

    A stage's folder may be a symlink, such as to a larger disk, as long as that is there.
    """
    finals = list(finals)
    stages = {final.parent: None for final in finals}
    for folder in (path for stage in stages for path in (stage, stage / LEASES)):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(
                f"{folder}: a file, or a symlink to nothing, is in the place of a folder of the"
                " store.\n"
                "  Mount its disk, or move it away and run the same command again:"
                f" {format_move(folder)}"
            )
    for place in (path for final in finals for path in (final, partial_folder(final))):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            kind = "a symlink" if place.is_symlink() else "a file"
            raise UserError(
                f"{place}: {kind} is in the place of a step's folder. The store did not make it.\n"
                f"  Move it away and run the same command again: mv {place} ELSEWHERE"
            )


def clear_place(path: Path, name: str) -> None:
    """Remove a folder that nothing needs; set it aside if it has a file of the user's."""
    set_aside(path, name) if explain_foreign_files(path) else remove(path)


def set_aside(path: Path, name: str) -> None:
    """Keep a replaced folder until the next prune, under its content hash, or as `unknown`.

    It replaces an older one of the same content, except where that has a file of the user's.
    """
    fingerprint = path.name.partition(".")[0]
    aside, number = path.with_name(f"{fingerprint}.old-{name}"), 2
    while os.path.lexists(aside):
        is_folder = aside.is_dir() and not aside.is_symlink()
        if is_folder and not explain_foreign_files(aside):
            remove(aside)
            break
        aside, number = path.with_name(f"{fingerprint}.old-{name}-{number}"), number + 1
    path.rename(aside)


def remove(path: Path) -> None:
    """Rename a step's folder, then remove it, so that a killed removal is recognised as one."""
    gone = path.with_name(path.name.partition(".")[0] + REMOVED_SUFFIX)
    if gone != path:
        if gone.exists():
            shutil.rmtree(gone)
        path.rename(gone)
    shutil.rmtree(gone)


@contextmanager
def lock_step(final: Path, on_wait: Callable[[str], None]) -> Iterator[leases.Lease]:
    """One writer per step, on all machines that see the store. See `resources/leases.py`."""
    folder = lease_folder(final)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        lock_shared(find_store(final), lambda: on_wait("a prune of the store")),
        leases.hold(folder, on_wait, on_loss=_end_process) as lease,
    ):
        yield lease


def lease_folder(final: Path) -> Path:
    return final.parent / LEASES / final.name


def _end_process(lease: leases.Lease) -> None:
    """This process was suspended for so long that another one builds its step."""
    print_faults(str(_describe_loss(lease)))
    os._exit(FAILED)


def check_held(lease: leases.Lease) -> None:
    """Raise where another process has the lease by now. For the moment before a step is sealed."""
    if not lease.is_current():
        raise _describe_loss(lease)


def _describe_loss(lease: leases.Lease) -> StageError:
    return StageError(
        f"{lease.folder.name}: another process has taken this step over, since this one gave no"
        " sign of life for minutes.\n"
        "  Run the same command again: it waits for the other, or takes what that has built."
    )


@contextmanager
def lock_shared(root: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Runs share this lock. While one holds it, nothing is removed from the store.

    A run shows itself and then looks for a prune, which does the same the other way round: of two
    that begin at once, at least one sees the other.
    """
    has_waited = False
    while True:
        with _show_user(root, "run"):
            if not any(leases.is_held(folder) for folder in _list_users(root, "prune")):
                yield
                return
        if not has_waited:
            on_wait()
        has_waited = True
        time.sleep(leases.PAUSE)


@contextmanager
def lock_exclusive(root: Path) -> Iterator[None]:
    """While this lock is held, no run of any machine works in the store and none starts."""
    with _show_user(root, "prune") as own:
        others = [folder for folder in _list_users(root, "*") if folder != own]
        held = [folder for folder in others if leases.is_held(folder)]
        step = _name_step_in_progress(root)
        if step or held:
            holder = f" ({leases.describe_holder(held[0])})" if held else ""
            raise UserError(
                f"{root}: a run is at work{step or holder}. Nothing was removed.\n"
                "  Prune when no run is at work. One that was killed on another machine counts for"
                f" {leases.EXPIRY:.0f} s."
            )
        for folder in others:
            if leases.describe_holder(folder):  # of a process that was killed
                shutil.rmtree(folder, ignore_errors=True)
        yield


@contextmanager
def _show_user(root: Path, kind: str) -> Iterator[Path]:
    folder = root / IN_USE / f"{kind}-{secrets.token_hex(6)}"
    folder.parent.mkdir(exist_ok=True)
    try:
        with leases.hold(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _list_users(root: Path, kind: str) -> list[Path]:
    return sorted((root / IN_USE).glob(f"{kind}-*"))


def _name_step_in_progress(root: Path) -> str:
    """The first step that is being built."""
    for folder in sorted(root.glob(f"*/{LEASES}/*")):
        if leases.is_held(folder):
            return f" ({folder.parent.parent.name}/{folder.name} is being built)"
    return ""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
