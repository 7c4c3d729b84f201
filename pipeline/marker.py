"""A store's marker, `.strop-store`: that this folder is a store, and which runs folders have used it.

A run writes it before it builds anything. Pruning goes by it: without a marker nothing is removed, and while one of the
runs folders is away nothing says what its runs still need. A runs folder has a marker too, which tells it from the
empty place where a disk is not mounted.
"""

import fcntl
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_json
from pipeline.errors import Refusal

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
        raise Refusal(f"forget={runs}: {store} does not know this runs folder. {_list_known(known)}")
    if (runs / RUNS_MARKER).is_file():
        raise Refusal(f"forget={runs}: it is there. To let a run's work go, remove that run's own folder in it.")
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
        raise Refusal(
            f"{file}: it is not the marker of a store in a form that is known here.\n"
            "  Restore it; or remove it and repeat one run of each runs folder that uses this store, before you prune."
        )
    return list(told["runs"])


def check_runs(store: Path, runs: Path) -> list[Path]:
    """Every runs folder of a store, all of them there and the given one among them; else nothing may be removed."""
    known = read_runs(store)
    if known is None:
        raise Refusal(
            f"{store}: it has no {STORE_MARKER}, so nothing says that this is a store and which runs need it.\n"
            f"  Every run writes one: repeat a run of each runs folder with store={store} (what is built is found"
            " again), then prune."
        )
    if str(runs.resolve()) not in known:
        raise Refusal(f"runs={runs}: no run of this folder has used {store}. Nothing was removed. {_list_known(known)}")
    if away := [each for each in known if not (Path(each) / RUNS_MARKER).is_file()]:
        raise Refusal(
            f"{away[0]}: the runs of this folder use {store}, and it is not there. Nothing was removed.\n"
            "  Bring it back (is its disk mounted?). If it is gone for good, type"
            f" {shlex.join(['python', '-m', 'pipeline.usage', f'store={store}', f'forget={away[0]}'])}"
        )
    return [Path(each) for each in known]


def _change_runs(store: Path, change: Callable[[list[str]], list[str]]) -> None:
    with (store / f"{STORE_MARKER}.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        write_json(store / STORE_MARKER, {"format": FORMAT, "runs": change(read_runs(store) or [])})


def _is_marker(told: Any) -> bool:
    runs = told.get("runs") if isinstance(told, dict) and told.get("format") == FORMAT else None
    return isinstance(runs, list) and all(isinstance(each, str) for each in runs)


def _list_known(known: list[str]) -> str:
    return f"It knows: {', '.join(known) or 'none'}"
