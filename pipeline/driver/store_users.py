"""A store's marker, `.strop-store`: it says that a folder is a store and which runs folders use it.

A run writes it before it builds anything. Without it nothing is pruned, nor while one of the runs
folders is missing, since it is unknown what those runs still need. A runs folder has a marker too:
without one it may be the mount point of a disk that is not mounted. So a folder that the store
knows gets no second marker, except from `forget=`.
"""

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.artifacts import MADE_BY, STORE_MARKER, read_other_stores, write_json
from pipeline.errors import UserError
from pipeline.resources import leases

RUNS_MARKER = ".strop-runs"
MARKER_LEASE = ".marker.lease"  # in a store: who changes its marker
FORMAT = 1


def register_runs(store: Path, runs: Path, others: Iterable[Path] = ()) -> None:
    """Note that runs of this folder use the store, and the `others` that they read."""
    folder, read = str(runs.resolve()), [other.resolve() for other in others]
    is_known = folder in (read_runs(store) or [])
    if is_known and read == read_other_stores(store)[: len(read)]:
        return
    if not is_known and not (runs / RUNS_MARKER).is_file():
        write_json(runs / RUNS_MARKER, {"format": FORMAT})
    _change_runs(store, lambda known: sorted({*known, folder}), read)


def forget_runs(store: Path, runs: Path) -> str:
    """Remove a runs folder that is gone for good from the marker: its runs need nothing more.

    If runs are in it, they count from now on as all that it has. Returns what was done.
    """
    folder = str(runs.resolve())
    known = read_runs(store) or []
    if folder not in known:
        raise UserError(
            f"forget={runs}: {store} does not know this runs folder. {_name_known(known)}"
        )
    if (runs / RUNS_MARKER).is_file():
        raise UserError(
            f"forget={runs}: this folder exists. To release the steps of a run, remove the run's"
            " folder in it."
        )
    if list(find_plans(runs, faults=[])):
        write_json(runs / RUNS_MARKER, {"format": FORMAT})
        return f"{runs}: the store keeps what the runs that are in it now need"
    _change_runs(store, lambda known: [each for each in known if each != folder])
    return f"{runs}: the store keeps nothing for its runs any more"


def read_runs(store: Path) -> list[str] | None:
    """The runs folders that have used this store; None where it has no marker."""
    file = store / STORE_MARKER
    try:
        marker = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        marker = None
    if not _is_marker(marker):
        raise UserError(
            f"{file}: not a store's marker in a known form.\n"
            "  Restore it; or remove it and repeat one run of each runs folder that uses this store"
            " before you prune."
        )
    return list(marker["runs"])


def check_runs(store: Path, runs: Path) -> list[Path]:
    """A store's runs folders. Refuses if one is missing or the given one is not among them."""
    known = read_runs(store)
    if known is None:
        raise UserError(
            f"{store}: no {STORE_MARKER} here, so it is unknown whether this is a store and which"
            " runs need it.\n"
            f"  Every run writes one: repeat a run of each runs folder with store={store} (built"
            " steps are reused), then prune."
        )
    if str(runs.resolve()) not in known:
        raise UserError(
            f"runs={runs}: no run of this folder has used {store}. Nothing was removed."
            f" {_name_known(known)}"
        )
    for folder in map(Path, known):
        if not (folder / RUNS_MARKER).is_file():
            raise UserError(_describe_absence(store, folder))
    return [Path(each) for each in known]


def _describe_absence(store: Path, folder: Path) -> str:
    command = shlex.join(["strop", "store", f"store={store}", f"forget={folder}"])
    if not list(find_plans(folder, faults=[])):
        return (
            f"{folder}: missing, and its runs use {store}. Nothing was removed.\n"
            f"  Bring it back (is its disk mounted?). If it is gone for good, type {command}"
        )
    return (
        f"{folder}: it has runs and no {RUNS_MARKER}, so it is unknown whether all runs that use"
        f" {store} are in it. Nothing was removed.\n"
        "  Bring the others back (is a disk mounted there?). If these are all, or the others are"
        f" gone for good, type {command}"
    )


def _change_runs(
    store: Path, change: Callable[[list[str]], list[str]], read: Iterable[Path] = ()
) -> None:
    with leases.hold(store / MARKER_LEASE):
        others = [str(other) for other in dict.fromkeys([*read, *read_other_stores(store)])]
        marker = {"format": FORMAT, "runs": change(read_runs(store) or [])}
        write_json(store / STORE_MARKER, {**marker, "others": others} if others else marker)


def _is_marker(marker: Any) -> bool:
    is_known = isinstance(marker, dict) and marker.get("format") == FORMAT
    runs = marker.get("runs") if is_known else None
    return isinstance(runs, list) and all(isinstance(each, str) for each in runs)


def _name_known(known: list[str]) -> str:
    return f"It knows: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class StoreUsers:
    """Fingerprint → the runs whose plan has it; and the faults that hide some of them."""

    runs: dict[str, list[str]]
    faults: list[str]

    def check(self) -> None:
        if self.faults:
            raise UserError(
                "\n".join(
                    [*self.faults, "Nothing was removed: it is unknown what these runs need."]
                )
            )


def read_step_record(path: Path) -> dict[str, object]:
    try:
        step = json.loads((path / store.STEP).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return step if isinstance(step, dict) else {}


def list_folder(folder: Path) -> list[Path]:
    return [] if folder.is_symlink() or not folder.is_dir() else sorted(folder.iterdir())


def find_users(root: Path, folders: Iterable[Path]) -> StoreUsers:
    """The runs of these folders, sweep points included, and others that made a step here."""
    users = StoreUsers(defaultdict(list), [])
    known = list(dict.fromkeys(folder.resolve() for folder in folders))
    for number, folder in enumerate(known):
        for plan in find_plans(folder, users.faults):
            run = plan.parent.relative_to(folder) if number == 0 else plan.parent
            _add_plan(users, root, plan, run.as_posix())
    makers = {_find_run_dir(path) for stage in MADE_BY for path in list_folder(root / stage)}
    for run_dir in sorted(maker for maker in makers if maker):
        plan = Path(run_dir) / store.PLAN
        if not any(plan.is_relative_to(folder) for folder in known) and plan.is_file():
            _add_plan(users, root, plan, run_dir)
    return users


def _add_plan(users: StoreUsers, root: Path, plan: Path, run: str) -> None:
    """Add what a run needs: the Steps of its plan, those that its config names, and their bases."""
    try:
        named = json.loads(plan.read_bytes())
    except (OSError, ValueError, RecursionError):
        named = None
    if not isinstance(named, dict):
        users.faults.append(
            f"{plan}: cannot be read as a run's plan. Restore it, or remove the folder of this run."
        )
        return
    config = plan.parent / "config.yaml"
    text = config.read_text(errors="replace") if config.is_file() else ""
    paths = store.STEP_PATH.finditer(text)
    named = {**{path["fingerprint"]: path["stage"] for path in paths}, **named}
    bases = (_list_bases(root / str(stage) / name) for name, stage in named.items())
    for fingerprint in dict.fromkeys([*named, *chain.from_iterable(bases)]):
        users.runs[fingerprint].append(run)


def _list_bases(path: Path) -> list[str]:
    try:
        return store.list_bases(path)
    except (UserError, OSError, AttributeError):  # a damaged record names none
        return []


def find_plans(folder: Path, faults: list[str]) -> Iterator[Path]:
    """The plan of every run in a runs folder, in linked folders too."""

    def report(error: OSError) -> None:
        faults.append(
            f"{error.filename}: {error.strerror}. Make it readable, or remove this folder."
        )

    seen: set[Path] = set()
    if not folder.is_dir():
        faults.append(f"{folder}: this runs folder does not exist.")
        return
    for here, inside, files in os.walk(folder, onerror=report, followlinks=True):
        place, is_run = Path(here), store.PLAN in files
        if place.resolve() in seen:
            inside[:] = []
            continue
        seen.add(place.resolve())
        for name in files:
            link = place / name
            if is_run or name == "latest" or not link.is_symlink() or link.exists():
                continue
            faults.append(
                f"{link}: a broken link. Bring back what it pointed to, or remove the link."
            )
        if is_run:
            yield place / store.PLAN
        parts_of_run = ("store", "steps", "logs") if is_run else ()
        inside[:] = sorted(name for name in inside if name not in parts_of_run)
        if place == folder and "latest" in inside:
            inside.remove("latest")


def _find_run_dir(path: Path) -> str | None:
    """The folder of the run that made a step."""
    run_dir = read_step_record(path).get("story")
    return run_dir if isinstance(run_dir, str) else None
