"""One run from config to exit code: its plan, its folder, and what signals and errors lead to."""

import functools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import preflight, store
from pipeline.artifacts import make_new_folder, write_atomically, write_text
from pipeline.backends import api_client
from pipeline.config import Config
from pipeline.config.compose import quote
from pipeline.driver.cluster import launcher
from pipeline.driver.executor import StepFailed, build_missing, write_plan
from pipeline.driver.outline import outline_plan, select_targets, show_dry_run
from pipeline.driver.run_index import refresh_index
from pipeline.driver.run_record import RunEnd, record_run
from pipeline.driver.store_users import register_runs
from pipeline.errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    USER_ERROR,
    UserError,
    collect_faults,
    describe_interrupt,
    explain_disk_fault,
    ignore_signals,
    pluralize,
)
from pipeline.hashing import resolve_commit
from pipeline.plan import plan
from pipeline.preflight import capacity, qualification
from pipeline.preflight.training_fits import TrainingFits
from pipeline.status import RunPlan, list_unbuilt
from pipeline.step import pin_revisions

# Ends the path of a run's folder: its time, and below it a sweep's point.
RUN_NAME = re.compile(r"/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?(/\w+)?$")


@contextmanager
def explain_interrupts() -> Iterator[None]:
    try:
        yield
    except RunInterrupted as signal_name:
        print()  # ends the line that was being painted
        print(describe_interrupt(str(signal_name)), file=sys.stderr)
        raise


@explain_interrupts()
def run_point(cfg: Config, run_dir: Path | None = None) -> int:
    """Plan one run, then show the plan or run it. Returns the exit code."""
    api_client.register_key_names(cfg.model_dump(mode="json"))
    try:
        cfg = cfg if cfg.dry_run else pin_revisions(cfg, functools.cache(resolve_commit))
        run_plan = outline_plan(cfg, select_targets(plan(cfg), cfg.until))
        fits = TrainingFits(run_plan, is_here=cfg.cluster.kind == "local")
        if cfg.dry_run:
            return show_plan(cfg, run_plan, fits)
        if faults := find_faults(cfg, run_plan, fits):
            raise UserError(*faults)
        print_warnings(run_plan)
        with open_run(cfg, run_plan, run_dir) as run_dir:
            last = copy_report(build_missing(cfg, run_plan, run_dir), run_dir)
            if is_finished(run_dir):
                link_latest(cfg.runs, run_dir)
        print(last)
        return DONE
    except (UserError, OSError, StepFailed) as error:
        if (end := explain_end(error, run_dir or cfg.runs)) is None:
            raise
        print(end.message, file=sys.stderr)
        return end.code


@contextmanager
def open_run(cfg: Config, run_plan: RunPlan, run_dir: Path | None = None) -> Iterator[Path]:
    """A run's folder with its records, while the store cannot be pruned."""
    on_wait = functools.partial(print, f"waiting: {cfg.own_store} is being pruned", flush=True)
    with store.lock_shared(cfg.own_store, on_wait):
        register_runs(cfg.own_store, cfg.runs, cfg.other_stores)
        run_dir = open_run_dir(cfg, run_dir)
        write_plan(run_plan, run_dir)
        with keep_records(cfg.runs, run_dir, len(run_plan.steps)):
            yield run_dir


@contextmanager
def keep_records(runs: Path, run_dir: Path, steps: int) -> Iterator[None]:
    """Write what becomes of a run: run.json in its folder, and the page of all runs."""

    def explain(error: BaseException) -> RunEnd:
        return explain_end(error, run_dir) or RunEnd(FAILED, repr(error))

    try:
        with record_run(run_dir, steps, explain):
            refresh_index(runs)
            yield
    finally:
        refresh_index(runs)


def explain_end(error: BaseException, place: Path) -> RunEnd | None:
    """How a run ends by this error; None for an error that needs its traceback."""
    match error:
        case UserError():
            return RunEnd(USER_ERROR, str(error))
        case StepFailed():
            return RunEnd(error.code, str(error), error.worker_exit)
        case RunInterrupted():
            return RunEnd(INTERRUPTED, describe_interrupt(str(error)))
        case OSError() if explanation := explain_disk_fault(error, place):
            return RunEnd(USER_ERROR, explanation)
    return None


def find_faults(cfg: Config, run_plan: RunPlan, fits: TrainingFits) -> list[str]:
    """Every reason to refuse a run of this plan before anything is built."""
    coming = list_unbuilt(run_plan)
    built = [step for step in run_plan.steps if step not in coming] if coming else []
    checks = chain(
        preflight.list_checks(coming, is_here=fits.is_here),
        *(preflight.list_artifact_checks(step, run_plan.folder, coming) for step in built),
        capacity.list_checks(run_plan, fits, coming),
        qualification.list_checks(run_plan, coming),
        launcher.list_checks(cfg, coming),
    )
    return [*run_plan.faults, *collect_faults(checks)]


def show_plan(cfg: Config, run_plan: RunPlan, fits: TrainingFits) -> int:
    """Print the plan, then each reason why a run here would be refused, then the count of both.

    Returns the exit code that the run would have: that of a refusal, if there are reasons.
    """
    statuses = show_dry_run(cfg, run_plan, fits)
    for line in preflight.describe_unread(list_unbuilt(run_plan)):
        print(line)
    sys.stdout.flush()
    print_warnings(run_plan)
    faults = find_faults(cfg, run_plan, fits)
    if faults:
        print("A run here would be refused:")
    for fault in faults:
        print(fault)
    reasons = pluralize(len(faults), "reason")
    verdict = f"be refused for {reasons}" if faults else "be accepted"
    to_do = sum(manifest is None for manifest, _ in statuses.values())
    steps = pluralize(len(run_plan.steps), "step")
    print(f"{steps}, {to_do} to do · a run here would {verdict}", flush=True)
    return USER_ERROR if faults else DONE


def print_warnings(run_plan: RunPlan) -> None:
    """Print what is wrong now and may be right when it is needed."""
    coming = list_unbuilt(run_plan)
    slow, silent = capacity.warn_of_slow_dtypes(coming), preflight.warn_of_silent_servers(coming)
    unqualified = qualification.warn_of_unqualified(run_plan, coming)
    for warning in chain(slow, silent, unqualified, preflight.warn_of_one_sided_sets(coming)):
        print(warning, file=sys.stderr, flush=True)


class RunInterrupted(BaseException):
    """SIGTERM or SIGINT, by name. The same command resumes."""


def interrupt_on_signals() -> None:
    def stop(number: int, frame: Any) -> None:
        ignore_signals()  # a second Ctrl-C must not break off the end of the workers
        raise RunInterrupted(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def open_run_dir(cfg: Config, folder: Path | None = None) -> Path:
    """Make `runs/<recipe>/<time>/`, write the resolved config, and link `runs/latest` to it.

    Once `runs/latest` is a finished run, the link moves only when the next run has finished.
    """
    import yaml

    run_dir = folder or make_run_dir(cfg)
    (run_dir / "steps").mkdir(parents=True, exist_ok=True)
    config = yaml.safe_dump(json.loads(cfg.model_dump_json()), sort_keys=False)
    command = make_repeat_command(cfg)
    head = f"# {command}\n" if command.isprintable() else ""  # else it would be no YAML comment
    write_text(run_dir / "config.yaml", f"{head}{config}")
    latest = cfg.runs / "latest"
    if os.path.lexists(latest) and not _is_own_link(latest, cfg.runs):
        fault = "not a link of ours, so it stays."
        remedy = "Move it away, and it will point to the last finished run."
        print(f"! {latest}: {fault} {remedy}", file=sys.stderr, flush=True)
    elif not is_finished(latest):
        link_latest(cfg.runs, run_dir)
    return run_dir


def make_repeat_command(cfg: Config) -> str:
    """What to type to repeat a run from any folder, with the same store and runs."""
    stores = [str(folder.absolute()) for folder in (cfg.own_store, *cfg.other_stores)]
    listed = f"[{','.join(map(quote, stores))}]" if cfg.other_stores else stores[0]
    words = [f"store={listed}", f"runs={cfg.runs.absolute()}"]
    words += [f"until={cfg.until}"] if cfg.until else []
    return f"cd {shlex.quote(str(Path.cwd()))} && {cfg.command} {shlex.join(words)}"


def _is_own_link(latest: Path, runs: Path) -> bool:
    """Whether `runs/latest` is ours: it leads, or led before these runs were moved, to a run."""
    if not latest.is_symlink():
        return False
    target = latest.parent / latest.readlink()
    is_here = target.is_relative_to(runs.absolute()) or target.resolve().is_relative_to(
        runs.resolve()
    )
    return is_here or bool(RUN_NAME.search(target.as_posix())) or (target / store.PLAN).is_file()


def is_finished(run_dir: Path) -> bool:
    """Whether a run has its report, which is what `runs/latest` is read for."""
    return (run_dir / "report.html").is_file()


def link_latest(runs: Path, run_dir: Path) -> None:
    latest, scratch = runs / "latest", runs / f".latest.{run_dir.name}.{os.getpid()}"
    if os.path.lexists(latest) and not _is_own_link(latest, runs):
        return
    scratch.unlink(missing_ok=True)
    target = run_dir.absolute()
    is_inside = target.is_relative_to(runs.absolute())  # then the link survives a move of both
    scratch.symlink_to(target.relative_to(runs.absolute()) if is_inside else target)
    scratch.rename(latest)


def make_run_dir(cfg: Config) -> Path:
    return make_new_folder(cfg.runs / cfg.recipe / time.strftime("%Y-%m-%d_%H-%M-%S"))


def copy_report(last: Path, run_dir: Path) -> Path:
    """Copy the report to the run's folder, where it outlives the store. Returns what to show."""
    if not (last / "report.html").exists():
        return last
    for file in last.glob("report.*"):
        write_atomically(run_dir / file.name, file.read_bytes())
    return run_dir / "report.html"
