"""One point from config to exit code: plan, run, story. What a person's Ctrl-C, SIGTERM and mistakes lead to."""

import functools
import json
import shutil
import signal
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import preflight, store
from pipeline.artifacts import write_text
from pipeline.backends import api_client
from pipeline.config import Config
from pipeline.driver.executor import StepFailed, dry_run, outline, run, select
from pipeline.driver.store_users import register_runs
from pipeline.errors import DONE, REFUSED, UserError, explain_disk_fault, many, refusals
from pipeline.hashing import commit_of
from pipeline.plan import plan
from pipeline.preflight import capacity
from pipeline.status import Planned, unbuilt
from pipeline.step import pinned


def drive(cfg: Config, story: Path | None = None) -> int:
    """One point from config to exit code: plan it, then show the plan or run it."""
    api_client.register_key_names(cfg.model_dump(mode="json"))
    try:
        cfg = cfg if cfg.dry_run else pinned(cfg, functools.cache(commit_of))
        planned = outline(cfg, select(plan(cfg), cfg.until))
        if cfg.dry_run:
            show(cfg, planned)
            return DONE
        if faults := refused(planned):
            raise UserError(*faults)
        warn(planned)
        with store.at_work(
            cfg.store, lambda: print(f"waiting: {cfg.store} is being pruned", flush=True)
        ):
            register_runs(cfg.store, cfg.runs)
            story = open_story(cfg, story)
            last = report(run(cfg, planned, story), story)
            if is_finished(story):
                point_latest(cfg.runs, story)
            print(last)
        return DONE
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    except OSError as error:
        if not (said := explain_disk_fault(error, story or cfg.runs)):
            raise
        print(said, file=sys.stderr)
        return REFUSED
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return failure.code
    except Stopped as stopped:
        print()  # the line that was being painted ends here
        print(f"stopped by {stopped}; the same command goes on from here", file=sys.stderr)
        raise


def refused(planned: Planned) -> list[str]:
    """Every reason why a run of this plan is refused before anything is built."""
    coming = unbuilt(planned)
    built = [step for step in planned.steps if step not in coming] if coming else []
    made = (one for step in built for one in preflight.checks_of_made(step, planned.folder, coming))
    return [
        *planned.faults,
        *refusals(chain(preflight.checks(coming), made, capacity.checks(planned, coming))),
    ]


def show(cfg: Config, planned: Planned) -> None:
    """The plan, and whatever a run here would refuse, in its own words; the last line counts both."""
    found = dry_run(cfg, planned)
    for line in preflight.unread(unbuilt(planned)):
        print(line)
    sys.stdout.flush()
    warn(planned)
    faults = refused(planned)
    if faults:
        print("A run here would be refused:")
    for fault in faults:
        print(fault)
    counted = f" · a run here would be refused for {many(len(faults), 'reason')}" if faults else ""
    to_do = sum(manifest is None for manifest, _ in found.values())
    print(f"{many(len(planned.steps), 'step')}, {to_do} to do{counted}", flush=True)


def warn(planned: Planned) -> None:
    """What may be in order by the time that it is needed."""
    for said in (*capacity.slow_dtypes(unbuilt(planned)), *preflight.silent(unbuilt(planned))):
        print(said, file=sys.stderr, flush=True)


class Stopped(BaseException):
    """SIGTERM or SIGINT: the same command resumes."""


def stop_on_signals() -> None:
    def stop(number: int, frame: Any) -> None:
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def open_story(cfg: Config, folder: Path | None = None) -> Path:
    """`runs/<recipe>/<time>/` with the resolved config. While no run has finished, `runs/latest` points to it."""
    import yaml

    story = folder or fresh_story(cfg)
    (story / "steps").mkdir(parents=True, exist_ok=True)
    write_text(
        story / "config.yaml", yaml.safe_dump(json.loads(cfg.model_dump_json()), sort_keys=False)
    )
    latest = cfg.runs / "latest"
    if latest.exists() and not latest.is_symlink():
        said = "is not a link of ours and stays as it is. Move it away to have it point to the last finished run."
        print(f"! {latest}: {said}", file=sys.stderr, flush=True)
    elif not is_finished(latest):
        point_latest(cfg.runs, story)
    return story


def is_finished(story: Path) -> bool:
    """Whether a run got as far as its report, which is what `runs/latest` is read for."""
    return (story / "report.html").is_file()


def point_latest(runs: Path, story: Path) -> None:
    latest, scratch = runs / "latest", runs / f".latest.{story.name}"
    if latest.exists() and not latest.is_symlink():
        return
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(story.absolute())
    scratch.rename(latest)


def fresh_story(cfg: Config) -> Path:
    wanted = cfg.runs / cfg.recipe / time.strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        path = wanted if attempt == 0 else wanted.with_name(f"{wanted.name}-{attempt + 1}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise AssertionError(f"a thousand runs in one second at {wanted}")


def report(last: Path, story: Path) -> Path:
    """The report also lies with the run's story, where it outlives the store's folder; else the last Step's folder."""
    if not (last / "report.html").exists():
        return last
    for file in last.glob("report.*"):
        shutil.copyfile(file, story / file.name)
    return story / "report.html"
