"""`strop store`: what is in the store and which runs use it; `--prune` removes what no run needs.

A run needs all Steps of its plan; to release them, remove its folder under runs/. Pruned Steps keep
their manifest, so that what was made from them stays built. Unfinished and replaced folders go
completely. Only what the store wrote is touched: in a store with a marker, folders that have a
step's name and a record of that step.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MADE_BY
from pipeline.driver import store_users
from pipeline.driver.store_users import StoreUsers, find_users, list_folder, read_step_record
from pipeline.errors import (
    DONE,
    USER_ERROR,
    UserError,
    exit_on_signals,
    explain_disk_fault,
    pluralize,
    suggest,
)

USAGE = "strop store [store=store] [runs=runs] [--prune [--yes]] [forget=RUNS_FOLDER]"
KNOWN = "store=", "runs=", "forget=", "--prune", "--yes"
# The names of steps, of unfinished and replaced ones, and of what a killed prune was removing.
SUFFIXES = rf"\.partial|\.old-(?:[0-9a-f]{{16}}|unknown(?:-\d+)?)|{re.escape(store.REMOVED_SUFFIX)}"
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
    foreign_file: str = ""  # the first file in it that the store did not write

    @property
    def is_spare(self) -> bool:
        if self.state in (PRUNED, FOREIGN):
            return False
        return self.state == LEFTOVER or not self.runs


def main(arguments: list[str]) -> int:
    exit_on_signals()
    try:
        options, root, runs = parse_arguments(arguments)
        if not root.is_dir():
            raise UserError(
                f"{root}: no store here.\n"
                "  Go to the folder of your runs, or give the store: store=FOLDER"
            )
        store.rewrite_adapter_configs(root)
        if forgotten := options.get("forget"):
            store_users.forget_runs(root, Path(forgotten))
        if "--prune" in options:
            offer_prune(root, runs, confirmed="--yes" in options)
        else:
            users = find_users(root, [runs, *map(Path, store_users.read_runs(root) or [])])
            print("".join(f"! {fault}\n" for fault in users.faults), end="", file=sys.stderr)
            print_entries(list_store(root, users))
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if not (explanation := explain_disk_fault(error)):
            raise
        print(f"{explanation}\n  What remains is offered again.", file=sys.stderr)
        return USER_ERROR
    return DONE


def parse_arguments(arguments: list[str]) -> tuple[dict[str, str], Path, Path]:
    """The options, the store and the runs folder."""
    options: dict[str, str] = {"store": "store", "runs": "runs"}
    for word in arguments:
        name, equals, value = word.partition("=")
        if name + equals not in KNOWN:
            raise UserError(f"{word}: unknown. {suggest(word, list(KNOWN))}\n  {USAGE}")
        if equals and not value:
            raise UserError(f"{word}: a folder was expected, such as {name}={name}.\n  {USAGE}")
        options[name] = value
    return options, Path(options["store"]), Path(options["runs"])


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
    runs = users.runs.get(fingerprint, [])
    foreign = store.find_foreign_files(path, manifest) if manifest else []
    if suffix == store.REMOVED_SUFFIX:
        state = LEFTOVER
    elif foreign:
        return StoreEntry(
            path, FOREIGN, measure_size(path), runs, foreign[0].relative_to(path).as_posix()
        )
    elif not _is_written_by_store(path, stage, fingerprint):
        state = FOREIGN
    elif suffix.startswith(".old-"):
        state, runs = REPLACED, []
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
    """Files of killed processes, and locks of removed steps. Read while no run is at work."""
    for path in list_folder(root):
        if SCRATCH.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield StoreEntry(path, LEFTOVER, path.stat().st_size)
    for stage in sorted(MADE_BY):
        steps = {path.name.partition(".")[0] for path in list_folder(root / stage)}
        for path in list_folder(root / stage / ".locks"):
            is_lock = store.STEP_NAME.fullmatch(path.name) and not path.is_symlink()
            if is_lock and path.name not in steps:
                yield StoreEntry(path, LEFTOVER, path.stat().st_size)


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
    if entry.foreign_file:
        return f"has {entry.foreign_file}, which the store did not write"
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
    spare = find_spare(root, runs)
    if not spare:
        print("nothing to prune")
        for entry in find_entries(root, runs):
            if entry.foreign_file and not entry.runs:
                print(f"{entry.path}: kept, since it {describe_users(entry)}")
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
    return [entry for entry in find_entries(root, runs) if entry.is_spare]


def find_entries(root: Path, runs: Path) -> list[StoreEntry]:
    users = find_users(root, [runs, *store_users.check_runs(root, runs)])
    users.check()
    return list_store(root, users)


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
