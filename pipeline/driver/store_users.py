"""A store's marker, `.strop-store`: that this folder is a store, and which runs folders have used it.

A run writes it before it builds anything. Pruning goes by it: without a marker nothing is removed, and while one of the
runs folders is away nothing says what its runs still need. A runs folder has a marker too, which tells it from the
empty place where a disk is not mounted.
"""

import fcntl
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.artifacts import MADE_BY, write_json
from pipeline.errors import UserError

STORE_MARKER, RUNS_MARKER = ".strop-store", ".strop-runs"
FORMAT = 1


def register_runs(store: Path, runs: Path) -> None:
    """Note that runs of this folder use the store."""
    own = str(runs.resolve())
    if not (runs / RUNS_MARKER).is_file():
        write_json(runs / RUNS_MARKER, {"format": FORMAT})
    if own not in (read_runs(store) or []):
        _change_runs(store, lambda known: sorted({*known, own}))


def forget_runs(store: Path, runs: Path) -> None:
    """A runs folder that is gone for good: what its runs used is used by nobody."""
    own = str(runs.resolve())
    known = read_runs(store) or []
    if own not in known:
        raise UserError(
            f"forget={runs}: {store} does not know this runs folder. {_name_known(known)}"
        )
    if (runs / RUNS_MARKER).is_file():
        raise UserError(
            f"forget={runs}: it is there. To let a run's work go, remove that run's own folder in it."
        )
    _change_runs(store, lambda known: [each for each in known if each != own])


def read_runs(store: Path) -> list[str] | None:
    """The runs folders that have used this store; None where it has no marker."""
    file = store / STORE_MARKER
    try:
        told = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        told = None
    if not _is_marker(told):
        raise UserError(
            f"{file}: it is not the marker of a store in a form that is known here.\n"
            "  Restore it; or remove it and repeat one run of each runs folder that uses this store, before you prune."
        )
    return list(told["runs"])


def check_runs(store: Path, runs: Path) -> list[Path]:
    """Every runs folder of a store, all of them there and the given one among them; else nothing may be removed."""
    known = read_runs(store)
    if known is None:
        raise UserError(
            f"{store}: it has no {STORE_MARKER}, so nothing says that this is a store and which runs need it.\n"
            f"  Every run writes one: repeat a run of each runs folder with store={store} (what is built is found"
            " again), then prune."
        )
    if str(runs.resolve()) not in known:
        raise UserError(
            f"runs={runs}: no run of this folder has used {store}. Nothing was removed. {_name_known(known)}"
        )
    if away := [each for each in known if not (Path(each) / RUNS_MARKER).is_file()]:
        raise UserError(
            f"{away[0]}: the runs of this folder use {store}, and it is not there. Nothing was removed.\n"
            "  Bring it back (is its disk mounted?). If it is gone for good, type"
            f" {shlex.join(['strop', 'store', f'store={store}', f'forget={away[0]}'])}"
        )
    return [Path(each) for each in known]


def _change_runs(store: Path, change: Callable[[list[str]], list[str]]) -> None:
    with (store / f"{STORE_MARKER}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        write_json(store / STORE_MARKER, {"format": FORMAT, "runs": change(read_runs(store) or [])})


def _is_marker(told: Any) -> bool:
    runs = told.get("runs") if isinstance(told, dict) and told.get("format") == FORMAT else None
    return isinstance(runs, list) and all(isinstance(each, str) for each in runs)


def _name_known(known: list[str]) -> str:
    return f"It knows: {', '.join(known) or 'none'}"


@dataclass(frozen=True)
class StoreUsers:
    """Fingerprint → the runs whose plan names it; and what keeps us from knowing all of them."""

    runs: dict[str, list[str]]
    faults: list[str]

    def check(self) -> None:
        if self.faults:
            raise UserError(
                "\n".join([*self.faults, "Nothing was removed: nothing says what these runs need."])
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
    """The runs of these folders, a sweep's points among them, and those elsewhere that made one of its steps."""
    users = StoreUsers(defaultdict(list), [])
    known = list(dict.fromkeys(folder.resolve() for folder in folders))
    for number, folder in enumerate(known):
        for plan in _find_plans(folder, users.faults):
            run = plan.parent.relative_to(folder) if number == 0 else plan.parent
            _add_plan(users, plan, run.as_posix())
    makers = {_find_run_dir(path) for stage in MADE_BY for path in list_folder(root / stage)}
    for story in sorted(maker for maker in makers if maker):
        plan = Path(story) / store.PLAN
        if not any(plan.is_relative_to(folder) for folder in known) and plan.is_file():
            _add_plan(users, plan, story)
    return users


def _add_plan(users: StoreUsers, plan: Path, run: str) -> None:
    try:
        named = json.loads(plan.read_bytes())
    except (OSError, ValueError, RecursionError):
        named = None
    if not isinstance(named, dict):
        users.faults.append(
            f"{plan}: cannot be read as a run's plan. Restore it, or remove the folder of this run."
        )
        return
    for fingerprint in named:
        users.runs[fingerprint].append(run)


def _find_plans(folder: Path, faults: list[str]) -> Iterator[Path]:
    """The plan of every run in a runs folder. Linked folders are read too: what their runs need is needed."""

    def report(error: OSError) -> None:
        faults.append(
            f"{error.filename}: {error.strerror}. Make it readable, or remove this folder."
        )

    seen: set[Path] = set()
    if not folder.is_dir():
        faults.append(f"{folder}: there is no such runs folder.")
    for here, inside, files in os.walk(folder, onerror=report, followlinks=True):
        place, is_run = Path(here), store.PLAN in files
        if place.resolve() in seen:
            inside[:] = []
            continue
        seen.add(place.resolve())
        for name in files:
            if (
                (place / name).is_symlink()
                and not (place / name).exists()
                and name != "latest"
                and not is_run
            ):
                faults.append(
                    f"{place / name}: it leads nowhere. Bring back what it led to, or remove the link."
                )
        if is_run:
            yield place / store.PLAN
        inside[:] = sorted(
            name for name in inside if not (is_run and name in ("store", "steps", "logs"))
        )
        if place == folder and "latest" in inside:
            inside.remove("latest")


def _find_run_dir(path: Path) -> str | None:
    """The folder of the run that made a step."""
    story = read_step_record(path).get("story")
    return story if isinstance(story, str) else None
