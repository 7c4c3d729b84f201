"""Writes runs/index.html: a row for every run and every sweep of a runs folder, newest first.

A folder whose records cannot be read is left out and named on the page. Nothing here can fail a
run. Processes that end at the same time write one after the other.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline import store
from pipeline.artifacts import read_json, read_object, write_text
from pipeline.driver.failures import describe_error, read_command, read_log
from pipeline.driver.run_record import TIME, RunState, read_state, sum_seconds
from pipeline.driver.store_users import RUNS_MARKER, find_plans
from pipeline.errors import UserError, make_printable, pluralize
from pipeline.resources import leases

if TYPE_CHECKING:
    from pipeline.report.render.index_page import RunFigures, RunRow

INDEX, LEASE = "index.html", ".index.lease"
BEST = "best"  # in a sweep: the best point, evaluated again on test
SHARED = "shared"  # in a sweep on a cluster: what built the steps of all its points
MAX_REASON = 200  # characters of why a run failed
MAX_VALUE, MAX_CHOICES = 24, 200  # characters of what was typed: of a value, of all
HIDDEN = {"recipes", "store", "runs"}  # the name of the run says it, or the page's place


def refresh_index(runs: Path) -> None:
    """Write the page. Whatever goes wrong is a warning: the run itself is worth more."""
    try:
        write_index(runs)
    except Exception as error:
        cause = str(error).splitlines()[0] if str(error) else repr(error)
        text = f"! {runs / INDEX}: the page of all runs was not written ({cause})."
        print(text, file=sys.stderr, flush=True)


def write_index(runs: Path) -> Path:
    from pipeline.report.render.index_page import render_index

    with leases.hold(runs / LEASE):
        rows, faults = list_runs(runs)
        page = render_index(str(runs.resolve()), rows, faults, time.strftime("%Y-%m-%d %H:%M"))
        write_text(runs / INDEX, page)
    return runs / INDEX


def find_runs_folder(run_dir: Path) -> Path | None:
    """The runs folder that a run is in: the nearest one with our marker."""
    parents = run_dir.resolve().parents
    return next((folder for folder in parents if (folder / RUNS_MARKER).is_file()), None)


def list_runs(runs: Path) -> tuple[list["RunRow"], list[str]]:
    """The rows, newest first, and why folders were left out."""
    faults: list[str] = []
    points: dict[Path, list[Path]] = {}
    makers: dict[Path, Callable[[], RunRow]] = {}
    for plan in find_plans(runs, faults):
        run_dir = plan.parent
        if is_point(run_dir):
            points.setdefault(run_dir.parent, []).append(run_dir)
        else:
            makers[run_dir] = partial(make_run_row, runs, run_dir)
    makers |= {sweep: partial(make_sweep_row, runs, sweep, dirs) for sweep, dirs in points.items()}
    rows = []
    for folder, make in makers.items():
        try:
            rows.append(make())
        except UserError as error:
            faults.append(str(error).splitlines()[0])
        except Exception as error:  # a folder of others may have anything in it
            faults.append(f"{folder}: not as a run leaves it ({make_printable(repr(error))}).")
    return sorted(rows, key=lambda row: row.started, reverse=True), faults


def is_point(run_dir: Path) -> bool:
    """Whether a run is a point of a sweep: its parent is named by a time, and it is not."""
    return bool(TIME.match(run_dir.parent.name)) and not TIME.match(run_dir.name)


def make_run_row(runs: Path, run_dir: Path) -> "RunRow":
    from pipeline.report.render.index_page import RunRow

    read_object(run_dir / store.PLAN)
    state = read_state(run_dir)
    has_log = state.broken and state.broken.log.is_file() and state.status != "running"
    log = state.broken.log if state.broken and has_log else run_dir / "logs"
    pages = {"report": run_dir / "report.html", "config": run_dir / "config.yaml", "log": log}
    return RunRow(
        name=_name_run(runs, run_dir),
        choices=describe_choices(run_dir),
        started=state.started,
        status=state.status,
        detail=describe_place(state),
        reason=find_reason(state),
        seconds=sum_seconds(state.ledger),
        figures=_read_figures(run_dir),
        links=_list_links(runs, pages),
        is_latest=_is_latest(runs, [run_dir]),
    )


def make_sweep_row(runs: Path, sweep: Path, points: list[Path]) -> "RunRow":
    """The figures are those of the best point."""
    from pipeline.report.render.index_page import RunRow

    state, best = read_state(sweep), _find_best_point(sweep, points[0])
    states = [read_state(point) for point in points if point.name not in (BEST, SHARED)]
    pages = {"points": sweep / "sweep.html", "config": points[0] / "config.yaml"}
    if best:
        pages["best point"] = best / "report.html"
    return RunRow(
        name=_name_run(runs, sweep),
        choices="",
        started=state.started,
        status=state.status,
        detail=describe_points(states, state.steps),
        reason="",
        seconds=sum_seconds(line for each in states for line in each.ledger),
        figures=_read_figures(best) if best else None,
        links=_list_links(runs, pages),
        is_latest=_is_latest(runs, points),
    )


def _name_run(runs: Path, run_dir: Path) -> str:
    """By its recipe; a run that is not in a recipe's folder by its own folder."""
    inside = run_dir.relative_to(runs)
    return str(inside.parent if TIME.match(inside.name) else inside)


def _is_latest(runs: Path, run_dirs: Iterable[Path]) -> bool:
    return (runs / "latest").resolve() in [run_dir.resolve() for run_dir in run_dirs]


def _read_figures(run_dir: Path) -> "RunFigures | None":
    from pipeline.report.render.index_page import read_figures

    report = run_dir / "report.json"
    return read_figures(read_json(report)) if report.is_file() else None


def _list_links(runs: Path, pages: dict[str, Path]) -> list[tuple[str, str]]:
    """Relative ones, so that the page can be moved together with the runs."""
    existing = {name: path for name, path in pages.items() if path.exists()}
    return [
        (name, quote(Path(os.path.relpath(path, runs)).as_posix()))
        for name, path in existing.items()
    ]


def describe_place(state: RunState) -> str:
    """How far a run is, or where it ended: `step 3 of 16, sample round 1`."""
    if state.broken is None:
        return ""
    of_all = f" of {state.steps}" if state.steps else ""
    return f"step {state.broken.number}{of_all}, {state.broken.name}"


def find_reason(state: RunState) -> str:
    """Why a run failed, in one line."""
    if state.status != "failed":
        return ""
    log = read_log(state.broken.log) if state.broken else ""
    error = next(describe_error(state, log), "")
    return make_printable(error.removeprefix("Error: "), MAX_REASON)


def describe_choices(run_dir: Path) -> str:
    """What was typed, without folders and without the recipe, by which the run is named."""
    words = read_command(run_dir).partition(" && ")[2].split()
    typed = [word.partition("=") for word in words if "=" in word]
    chosen = [
        f"{key}={make_printable(value, MAX_VALUE)}" for key, _, value in typed if key not in HIDDEN
    ]
    return make_printable(" ".join(chosen), MAX_CHOICES)


def describe_points(states: list[RunState], planned: int | None) -> str:
    count = pluralize(planned or len(states), "point")
    failed = sum(state.status == "failed" for state in states)
    return f"{count}, {failed} failed" if failed else count


def _find_best_point(sweep: Path, point: Path) -> Path | None:
    """The retest of the best point, or else that point itself."""
    from pipeline.report.render.sweep_page import choose_best

    if (sweep / BEST / "report.json").is_file():
        return sweep / BEST
    file = sweep / "points.json"
    points: list[dict[str, Any]] = read_json(file) if file.is_file() else []
    best = choose_best(points, _read_budget(point))
    return sweep / str(best["point"]) if best else None


def _read_budget(point: Path) -> float | None:
    import yaml

    config = yaml.safe_load((point / "config.yaml").read_text())
    budget: float | None = config["sweep"]["kl_budget"]
    return budget
