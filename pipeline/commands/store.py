"""`strop store`: what is in the store and which runs use it; `--prune` removes what no run needs.

A run needs all Steps of its plan; to release them, remove its folder under runs/. Pruned Steps keep
their manifest, so that what was made from them stays built. Unfinished and replaced folders go
completely. Only what the store wrote is touched: in a store with a marker, folders that have a
step's name, a record of that step, and no other file. What is kept for another file is named.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MADE_BY
from pipeline.commands.table import parse_words, reports_errors
from pipeline.driver import store_users
from pipeline.driver.store_users import StoreUsers, find_users, list_folder, read_step_record
from pipeline.errors import (
    DONE,
    UserError,
    exit_on_signals,
    explain_disk_fault,
    pluralize,
)

# The names of steps, of unfinished and replaced ones, and of what a killed prune was removing.
UNFINISHED_SUFFIX = r"(?:\.taken-\d+)?\.partial"
REPLACED_SUFFIX = r"\.old-(?:[0-9a-f]{16}|unknown)(?:-\d+)?"
SUFFIXES = rf"{UNFINISHED_SUFFIX}|{REPLACED_SUFFIX}|{re.escape(store.REMOVED_SUFFIX)}"
NAME = re.compile(rf"({store.STEP_NAME.pattern})({SUFFIXES})?")
# Files that a killed run or prune leaves in the store's folder.
SCRATCH = re.compile(r"\.contents\.json\.\d+|\.writable-\d+|\.\.strop-store\.tmp")
BUILT, PRUNED, UNFINISHED, REPLACED = "built", "pruned", "unfinished", "replaced"
LEFTOVER, FOREIGN = "leftover", "foreign"


@dataclass(frozen=True)
class StoreEntry:
    """One folder of the store, or a file that a killed process left in it.

    Nothing reads a leftover. A foreign folder has a step's name, but no record of that step, or has
    a file that the store did not write: only its owner can decide whether to remove it.
    """

    path: Path
    state: str
    size: int
    runs: list[str] = field(default_factory=list)
    reason: str = ""  # why it counts as foreign

    @property
    def is_spare(self) -> bool:
        if self.state in (PRUNED, FOREIGN):
            return False
        return self.state == LEFTOVER or not self.runs


@reports_errors
def main(arguments: list[str]) -> int:
    exit_on_signals()
    words = parse_words("store", arguments)
    root, runs = Path(words.knob("store")), Path(words.knob("runs"))
    if not root.is_dir():
        raise UserError(
            f"{root}: no store here.\n"
            "  Go to the folder of your runs, or give the store: store=FOLDER"
        )
    try:
        store.rewrite_adapter_configs(root)
        if forgotten := words.knobs["forget"]:
            print(store_users.forget_runs(root, Path(forgotten)))
        if "--prune" in words.flags:
            offer_prune(root, runs, confirmed="--yes" in words.flags)
        else:
            own = [runs] if "runs" in words.typed or runs.is_dir() else []
            users = find_users(root, [*own, *map(Path, store_users.read_runs(root) or [])])
            print("".join(f"! {fault}\n" for fault in users.faults), end="", file=sys.stderr)
            print_entries(list_store(root, users))
    except OSError as error:
        if not (explanation := explain_disk_fault(error)):
            raise
        raise UserError(f"{explanation}\n  What remains is offered again.") from error
    return DONE


def list_store(root: Path, users: StoreUsers) -> list[StoreEntry]:
    """What the store wrote, by stage and name, without symlinks and unknown names."""
    return [*_list_steps(root, users), *_list_leftover_files(root)]


def _list_steps(root: Path, users: StoreUsers) -> Iterator[StoreEntry]:
    for stage in sorted(MADE_BY):
        for path in list_folder(root / stage):
            name = NAME.fullmatch(path.name)
            if name and not path.is_symlink() and path.is_dir():
                yield _describe_folder(path, stage, name[1], name[2] or "", users)


def _describe_folder(
    path: Path, stage: str, fingerprint: str, suffix: str, users: StoreUsers
) -> StoreEntry:
    manifest = store.read_manifest(path)
    is_replaced = suffix.startswith(".old-")
    runs = [] if is_replaced else users.runs.get(fingerprint, [])
    reason = store.explain_foreign_files(path)
    if suffix == store.REMOVED_SUFFIX:
        state = LEFTOVER
    elif reason or not _is_written_by_store(path, stage, fingerprint):
        reason = reason or "has no record of this step"
        return StoreEntry(path, FOREIGN, measure_size(path), runs, reason)
    elif is_replaced:
        state = REPLACED
    elif suffix or manifest is None:
        state = UNFINISHED
    elif not store.is_pruned(manifest):
        state = BUILT
    else:  # a killed prune leaves files in a pruned step, which nothing reads
        names = [child.name for child in path.iterdir()]
        state = PRUNED if names == [store.MANIFEST] else LEFTOVER
    return StoreEntry(path, state, measure_size(path), runs)


def _is_written_by_store(path: Path, stage: str, fingerprint: str) -> bool:
    """Whether the folder has a record of this step. A worker's new folder may be empty still."""
    manifest = store.read_manifest(path)
    if manifest and (manifest.get("stage"), manifest.get("fingerprint")) == (stage, fingerprint):
        return True
    step = read_step_record(path)
    if (step.get("stage"), step.get("fingerprint")) == (stage, fingerprint):
        return True
    return all(child.name == f".{store.STEP}.tmp" for child in path.iterdir())


def _list_leftover_files(root: Path) -> Iterator[StoreEntry]:
    """Files of killed processes, and leases of removed steps. Read while no run is at work."""
    for path in list_folder(root):
        if SCRATCH.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield StoreEntry(path, LEFTOVER, path.stat().st_size)
    for stage in sorted(MADE_BY):
        steps = {path.name.partition(".")[0] for path in list_folder(root / stage)}
        folder = root / stage / store.LEASES
        for path in [] if (root / stage).is_symlink() else list_folder(folder):
            name = path.name.removesuffix(store.REMOVED_SUFFIX)
            is_lease = store.STEP_NAME.fullmatch(name) and not path.is_symlink()
            if is_lease and name not in steps:
                yield StoreEntry(path, LEFTOVER, measure_size(path))


# ── listing and pruning ───────────────────────────────────────────────────────────────────────────


def measure_size(path: Path) -> int:
    files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    return sum(file.lstat().st_size for file in files)


def print_entries(entries: list[StoreEntry]) -> None:
    for entry in entries:
        stage, name = entry.path.parent.name, entry.path.name
        size, users = format_megabytes(entry.size), describe_users(entry)
        print(f"{stage:<10} {name:<40} {entry.state:<10} {size:>12}  {users}")
    total = format_megabytes(sum(entry.size for entry in entries))
    print(f"{pluralize(len(entries), 'step')}, {total}")


def describe_users(entry: StoreEntry) -> str:
    if entry.reason:
        return entry.reason
    if not entry.runs:
        return "–"
    others = f" and {len(entry.runs) - 1} more" if entry.runs[1:] else ""
    return f"{entry.runs[-1]}{others}"


def format_megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def offer_prune(root: Path, runs: Path, confirmed: bool) -> None:
    """List what no run needs, ask, and remove it.

    What is removed is found once more while no run is at work: a run may need some of it by then.
    """
    spare, kept = find_spare(root, runs), find_kept(root, runs)
    if kept:
        print_entries(kept)
        print("kept: only you can decide about these. Move your files out of them, or remove them.")
    if not spare:
        print("nothing to prune")
        return
    print_entries(spare)
    if not confirmed and not _confirm(spare):
        return
    with store.lock_exclusive(root):
        still_spare = {entry.path for entry in find_spare(root, runs)}
        removed = [entry for entry in spare if entry.path in still_spare]
        for entry in removed:
            _remove_entry(entry)
    print(f"removed {format_megabytes(sum(entry.size for entry in removed))}")


def find_spare(root: Path, runs: Path) -> list[StoreEntry]:
    return [entry for entry in list_unneeded(root, runs) if entry.is_spare]


def find_kept(root: Path, runs: Path) -> list[StoreEntry]:
    """What no run needs and stays all the same."""
    return [entry for entry in list_unneeded(root, runs) if entry.state == FOREIGN]


def list_unneeded(root: Path, runs: Path) -> list[StoreEntry]:
    users = find_users(root, [runs, *store_users.check_runs(root, runs)])
    users.check()
    return [entry for entry in list_store(root, users) if not entry.runs]


def _confirm(spare: list[StoreEntry]) -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed. To remove these, type the same command with --yes.")
    try:
        reply = input(f"Remove {pluralize(len(spare), 'step')}? [y/N] ")
    except EOFError:
        reply = ""
    is_confirmed = reply.strip().lower() in ("y", "yes")
    if not is_confirmed:
        print("Nothing was removed.")
    return is_confirmed


def _remove_entry(entry: StoreEntry) -> None:
    """A built step keeps its manifest. After a killed removal the rest is offered again."""
    manifest = store.read_manifest(entry.path)
    if manifest and NAME.fullmatch(entry.path.name)[2] is None:  # type: ignore[index]
        store.prune(entry.path, manifest)
    elif entry.path.is_dir():
        store.remove(entry.path)
    else:
        entry.path.unlink(missing_ok=True)
