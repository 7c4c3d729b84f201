"""`strop store`: what is in the store, how large it is and which runs use it; `--prune` empties what no run needs.

A run names all Steps of its plan; to let its work go, remove its folder under runs/. Pruned Steps keep their manifest
(hollow), so that what was made from them stays built; unfinished work and replaced results go wholly.
Only what the store wrote is touched: folders of a step's name, in a store with a marker, that say which step they are.
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
# What a store names: a step, its unfinished work, what it replaced, and what a prune was removing.
NAME = re.compile(
    rf"({store.STEP_NAME.pattern})(\.partial|\.old-(?:[0-9a-f]{{16}}|unknown)|{re.escape(store.REMOVED_SUFFIX)})?"
)
# What a run or a prune that was killed leaves beside the stages.
SCRATCH = re.compile(r"\.contents\.json\.\d+|\.writable-\d+|\.\.strop-store\.tmp")
BUILT, PRUNED, UNFINISHED, REPLACED = "built", "hollow", "unfinished", "replaced"
LEFTOVER, FOREIGN = "leftover", "foreign"


@dataclass(frozen=True)
class StoreEntry:
    """One folder of the store, or a file that a killed process left in it.

    A leftover is read by nobody. Foreign is what has a step's name and nothing that shows that the store wrote it, or
    holds a file that the store did not write: nobody but its owner can know whether it may go.
    """

    path: Path
    state: str
    size: int
    runs: list[str] = field(default_factory=list)
    foreign_file: str = ""  # one file of somebody's that lies among its own

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
                f"{root}: no store lies here. Go to the folder of your runs, or give it: store=FOLDER"
            )
        store.rewrite_adapter_configs(root)
        if gone := options.get("forget"):
            store_users.forget_runs(root, Path(gone))
        if "--prune" in options:
            offer_prune(root, runs, sure="--yes" in options)
        else:
            users = find_users(root, [runs, *map(Path, store_users.read_runs(root) or [])])
            print("".join(f"! {fault}\n" for fault in users.faults), end="", file=sys.stderr)
            print_entries(list_store(root, users))
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if not (said := explain_disk_fault(error)):
            raise
        print(f"{said}\n  What was not removed yet is offered again.", file=sys.stderr)
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
    """What the store has written, by stage and name. Symlinks are not followed, and other names are not ours."""
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
    others = store.find_foreign_files(path, manifest) if manifest else []
    if suffix == store.REMOVED_SUFFIX:
        state = LEFTOVER
    elif others:
        return StoreEntry(
            path, FOREIGN, measure_size(path), runs, others[0].relative_to(path).as_posix()
        )
    elif not _is_written_by_store(path, stage, fingerprint):
        state = FOREIGN
    elif suffix.startswith(".old-"):
        state, runs = REPLACED, []
    elif suffix or manifest is None:
        state = UNFINISHED
    elif not store.is_pruned(manifest):
        state = BUILT
    else:  # a prune that was killed leaves files in a hollow step, which nobody reads
        state = PRUNED if [child.name for child in path.iterdir()] == [store.MANIFEST] else LEFTOVER
    return StoreEntry(path, state, measure_size(path), runs)


def _is_written_by_store(path: Path, stage: str, fingerprint: str) -> bool:
    """Whether a record in the folder says that it is this step's; one that a worker has only just made is empty."""
    manifest = store.read_manifest(path)
    if manifest and (manifest.get("stage"), manifest.get("fingerprint")) == (stage, fingerprint):
        return True
    step = read_step_record(path)
    if (step.get("stage"), step.get("fingerprint")) == (stage, fingerprint):
        return True
    return all(child.name == f".{store.STEP}.tmp" for child in path.iterdir())


def _list_leftover_files(root: Path) -> Iterator[StoreEntry]:
    """Files of processes that were killed, and locks of steps that are gone: read while no run is at work."""
    for path in list_folder(root):
        if SCRATCH.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield StoreEntry(path, LEFTOVER, path.stat().st_size)
    for stage in sorted(MADE_BY):
        there = {path.name.partition(".")[0] for path in list_folder(root / stage)}
        for path in list_folder(root / stage / ".locks"):
            if (
                store.STEP_NAME.fullmatch(path.name)
                and path.name not in there
                and not path.is_symlink()
            ):
                yield StoreEntry(path, LEFTOVER, path.stat().st_size)


# ── who uses it ───────────────────────────────────────────────────────────────────────────────────────────────────


def measure_size(path: Path) -> int:
    return sum(
        file.lstat().st_size for file in path.rglob("*") if not file.is_dir() or file.is_symlink()
    )


def print_entries(found: list[StoreEntry]) -> None:
    for each in found:
        users = (
            f"{each.runs[-1]}{f' and {len(each.runs) - 1} more' if each.runs[1:] else ''}"
            if each.runs
            else "–"
        )
        users = (
            f"holds {each.foreign_file}, which the store did not write"
            if each.foreign_file
            else users
        )
        print(
            f"{each.path.parent.name:<10} {each.path.name:<40} {each.state:<10} {format_megabytes(each.size):>12}  {users}"
        )
    print(f"{pluralize(len(found), 'step')}, {format_megabytes(sum(each.size for each in found))}")


def format_megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def offer_prune(root: Path, runs: Path, sure: bool) -> None:
    """List what no run names, ask, remove. Asked again while no run is at work: what one names by then stays."""
    spare = find_spare(root, runs)
    if not spare:
        print("nothing to prune: every finished step is named by a run")
        return
    print_entries(spare)
    if not sure and not _confirm(spare):
        return
    with store.lock_exclusive(root):
        still = {each.path for each in find_spare(root, runs)}
        going = [each for each in spare if each.path in still]
        for each in going:
            _remove_entry(each)
    print(f"removed {format_megabytes(sum(each.size for each in going))}")


def find_spare(root: Path, runs: Path) -> list[StoreEntry]:
    users = find_users(root, [runs, *store_users.check_runs(root, runs)])
    users.check()
    return [each for each in list_store(root, users) if each.is_spare]


def _confirm(spare: list[StoreEntry]) -> bool:
    if not sys.stdin.isatty():
        raise UserError("Nothing was removed. To remove these, add --yes to the same words.")
    try:
        agreed = input(f"Remove {pluralize(len(spare), 'step')}? [y/N] ").strip().lower() in (
            "y",
            "yes",
        )
    except EOFError:
        agreed = False
    if not agreed:
        print("Nothing was removed.")
    return agreed


def _remove_entry(each: StoreEntry) -> None:
    """A built step keeps its manifest; what is killed on the way is offered again."""
    manifest = store.read_manifest(each.path)
    if manifest and NAME.fullmatch(each.path.name)[2] is None:  # type: ignore[index]
        store.prune(each.path, manifest)
    elif each.path.is_dir():
        store.remove(each.path)
    else:
        each.path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
