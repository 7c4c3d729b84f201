"""Runs a plan: finds what is built, runs one worker for each other Step, and prints the ledger."""

import errno
import os
import time
from collections.abc import Iterable
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline import hardware, preflight, store
from pipeline.artifacts import write_json
from pipeline.config import Config, TrainConfig, renamed
from pipeline.driver.child_process import describe_failure, read_summary_lines, run_worker
from pipeline.driver.ledger import FAILED_SIGN, Ledger, summarize_cost
from pipeline.driver.plan_head import describe_head
from pipeline.errors import (
    ALREADY_BUILT,
    DONE,
    FAILED,
    USER_ERROR,
    UserError,
    collect_faults,
    pluralize,
    suggest,
)
from pipeline.hashing import ContentCache
from pipeline.models.merging import MERGED
from pipeline.preflight import capacity, durations
from pipeline.preflight.training_fits import TrainingFits
from pipeline.status import (
    PRUNED,
    RunPlan,
    StepStatus,
    collect_inputs,
    find_named_steps,
    list_fingerprints_read,
    read_status,
    read_statuses,
)
from pipeline.step import STAGE_VERSIONS, Identity, Step, find_checkpoint, has_floating_revision

describe_device = cache(hardware.describe_device)  # it starts nvidia-smi


class StepFailed(Exception):
    """A Step failed. The text says why; `code` is the driver's exit code, and then the worker's."""

    def __init__(self, message: str, code: int, worker_exit: int):
        super().__init__(message)
        self.code, self.worker_exit = code, worker_exit


def select_targets(last: Step, until: str | None) -> list[Step]:
    """`until=STAGE@R`: the stage's last Step labelled R.

    Without @R: that with label 0, else 1, else all Steps of the stage in evaluations.
    """
    if until is None:
        return [last]
    steps = last.ancestors()
    stage, _, label = until.partition("@")
    of_stage = [step for step in steps if step.stage == stage]
    for wanted in [label] if label else ["0", "1"]:
        if labelled := [step for step in of_stage if str(step.label) == wanted]:
            return labelled[-1:]
    if of_stage and not label:
        return of_stage
    if (new := renamed.BLOCKS.get(stage)) in STAGE_VERSIONS:
        raise UserError(
            f"until={until}: {stage} is {new} now. Give until={new}{until.removeprefix(stage)}"
        )
    if stage in STAGE_VERSIONS and not of_stage:
        raise UserError(
            f"until={until}: this plan has no stage {stage}: it is switched off.\n"
            f"  Choose a file of conf/{stage}/ to switch it on."
        )
    known = sorted({_name_target(step) for step in steps})
    raise UserError(f"until={until}: the plan has no such step. {suggest(until, known)}")


def _name_target(step: Step) -> str:
    is_round = isinstance(step.label, int) and step.label
    return f"{step.stage}@{step.label}" if is_round else step.stage


def prepare_plan(cfg: Config, targets: Iterable[Step]) -> RunPlan:
    """The Steps in order with their fingerprints. Refuses a plan that reads a missing file."""
    run_plan = outline_plan(cfg, targets)
    if run_plan.faults:
        raise UserError(*run_plan.faults)
    return run_plan


def outline_plan(cfg: Config, targets: Iterable[Step]) -> RunPlan:
    """As `prepare_plan`, with its reasons to refuse in `faults`: the rest can still be checked."""
    targets = list(targets)
    cache = ContentCache(cfg.store / ".contents.json")
    strict = Identity(lambda path: cache.hash_path(Path(path)))
    lenient = Identity(partial(_hash_if_any, cache))
    steps = [step for target in targets for step in target.ancestors()]
    unknown = [step for step in steps if collect_faults([partial(strict.fingerprint, step)])]
    faults = collect_faults(partial(strict.fingerprint, step) for step in unknown)
    faults += collect_faults(
        partial(_check_writable, knob, root, cfg.dry_run)
        for knob, root in _list_output_folders(cfg)
    )
    identity = lenient if unknown else strict
    order: dict[str, Step] = {}
    for step in steps:
        order.setdefault(identity.fingerprint(step), step)
    if not cfg.dry_run and not faults:
        cache.save()
        folders = (store.step_folder(cfg.store, step.stage, name) for name, step in order.items())
        store.check_places(path for path in folders if store.read_manifest(path) is None)
    placeholders = frozenset(map(identity.fingerprint, unknown))
    return RunPlan(list(order.values()), targets, identity, cfg.store, tuple(faults), placeholders)


def _hash_if_any(cache: ContentCache, path: str) -> str:
    try:
        return cache.hash_path(Path(path))
    except OSError:
        return f"? {path}"


def show_dry_run(cfg: Config, run_plan: RunPlan, fits: TrainingFits) -> dict[str, StepStatus]:
    """Print what is built, what a run would build, and its memory and time. Changes nothing."""
    ledger, statuses = Ledger(None), read_statuses(run_plan, cfg.verify)
    for line in describe_head(cfg, run_plan.steps):
        print(line)
    for step in run_plan.steps:
        fingerprint = run_plan.fingerprint(step)
        manifest, reason = statuses[fingerprint]
        shown = f"{fingerprint}~" if has_floating_revision(step) else fingerprint
        shown = "?" if fingerprint in run_plan.unknown else shown
        if manifest and not store.is_pruned(manifest) and _needs_merging(run_plan, step):
            reason = "will be merged, without training again"
        ledger.add_line("○" if manifest is None else "✓", step, shown, note=reason)
    to_do = [step for step in run_plan.steps if statuses[run_plan.fingerprint(step)][0] is None]
    memory = capacity.describe_memory(run_plan, fits, to_do)
    times = durations.Durations(run_plan, fits).describe(to_do)
    for line in chain(capacity.describe_dtype(cfg), memory, times):
        print(line)
    return statuses


def write_plan(run_plan: RunPlan, run_dir: Path) -> None:
    """The fingerprints of all Steps that the run needs, by which it is known as a run."""
    stages = {run_plan.fingerprint(step): step.stage for step in run_plan.steps}
    write_json(run_dir / store.PLAN, {**find_named_steps(run_plan), **stages})


def build_missing(cfg: Config, run_plan: RunPlan, run_dir: Path) -> Path:
    """Build what is missing, in order. Returns the folder of the last Step."""
    ledger = Ledger(run_dir)
    head = f"{cfg.recipe}: {pluralize(len(run_plan.steps), 'step')} · {run_dir}"
    print("\n".join([head, *capacity.describe_dtype(cfg)]))
    try:
        store.rewrite_adapter_configs(run_plan.root)  # the store may have been moved
        while not _run_pass(cfg, run_plan, run_dir, ledger):
            ledger.print_note(
                "a pruned step was rebuilt with other content, so that more of them are needed"
            )
    finally:
        store.rewrite_adapter_configs(run_plan.root)  # a checkpoint may have been moved
    return run_plan.folder(run_plan.steps[-1])


def _run_pass(cfg: Config, run_plan: RunPlan, run_dir: Path, ledger: Ledger) -> bool:
    """One pass over the plan. False if a Step turned out to need inputs that were pruned."""
    statuses = read_statuses(run_plan, verify=False)
    to_do = {name for name, (manifest, _) in statuses.items() if manifest is None}
    contents: dict[str, store.Manifest] = {}
    for number, step in enumerate(run_plan.steps):
        fingerprint = run_plan.fingerprint(step)
        inputs = collect_inputs(run_plan, step, contents)
        manifest, reason = read_status(run_plan, step, inputs, cfg.verify)
        if manifest and store.is_pruned(manifest) and fingerprint in to_do:
            manifest, reason = None, f"{step.stage}/{fingerprint} {PRUNED}"
        if manifest is None:
            read = list_fingerprints_read(run_plan, step) & contents.keys()
            if any(store.is_pruned(contents[name]) for name in read):
                return False
            if reason:
                ledger.print_note(reason)
            manifest = _build_step(cfg, run_plan, step, inputs, run_dir, number, ledger)
        elif _needs_merging(run_plan, step) and not store.is_pruned(manifest):
            # The worker finds the step built, and merges.
            manifest = _build_step(cfg, run_plan, step, inputs, run_dir, number, ledger)
        else:
            ledger.add_line("✓", step, fingerprint, seconds=manifest["seconds"], counted=False)
            if _needs_merging(run_plan, step):
                ledger.print_note(
                    f"train/{fingerprint} was pruned: no adapter is left to merge"
                    " (adapter.save_merged)"
                )
        contents[fingerprint] = manifest
        later = [one for one in run_plan.steps[number:] if run_plan.fingerprint(one) in to_do]
        preflight.check_artifact(step, run_plan.folder, later)
        _link_step(run_dir, step, run_plan.folder(step), number)
    return True


def _needs_merging(run_plan: RunPlan, step: Step) -> bool:
    """Whether `train.adapter.save_merged` asks for a copy that does not exist yet."""
    if not isinstance(step.config, TrainConfig):
        return False
    is_asked = getattr(step.config.adapter, "save_merged", False)
    return is_asked and not (run_plan.folder(step) / MERGED).exists()


def _build_step(
    cfg: Config,
    run_plan: RunPlan,
    step: Step,
    inputs: Any,
    run_dir: Path,
    number: int,
    ledger: Ledger,
) -> store.Manifest:
    fingerprint = run_plan.fingerprint(step)
    final = run_plan.folder(step).absolute()
    name = f"{number:03d}-{step.stage}-{fingerprint}"
    record, log = run_dir / "steps" / f"{name}.json", run_dir / "logs" / f"{name}.log"
    made_by = {"story": str(run_dir.absolute())}
    write_json(record, {**_make_record(cfg, run_plan, step, inputs, final), **made_by})
    log.parent.mkdir(exist_ok=True)

    started = time.monotonic()
    time_left = durations.TimeLeft(run_plan, run_plan.steps[number:])

    def show(text: str) -> None:
        ledger.show_running(step, fingerprint, text + time_left.describe())

    code = run_worker(record, log, show, ledger.print_note)
    manifest = store.read_manifest(final)
    if code not in (DONE, ALREADY_BUILT) or manifest is None:
        ledger.add_line(FAILED_SIGN, step, fingerprint, seconds=time.monotonic() - started)
        failure = describe_failure(step, fingerprint, code, log)
        raise StepFailed(failure, USER_ERROR if code == USER_ERROR else FAILED, code)
    sign, is_new = ("■", True) if code == DONE else ("✓", False)
    note, seconds = summarize_cost(manifest["cost"]), manifest["seconds"]
    ledger.add_line(sign, step, fingerprint, seconds=seconds, note=note, counted=is_new)
    for line in read_summary_lines(log):
        ledger.print_note(line)
    return manifest


def _make_record(
    cfg: Config, run_plan: RunPlan, step: Step, inputs: Any, final: Path
) -> dict[str, Any]:
    """step.json: everything that the worker needs, so that any Step can be run by hand."""
    return {
        "stage": step.stage,
        "version": STAGE_VERSIONS[step.stage],
        "label": step.label,
        "knob": step.knob,
        "fingerprint": run_plan.fingerprint(step),
        "out": str(final),
        "verify": cfg.verify,
        "place": find_checkpoint(step),
        "device": describe_device(),
        "command": f"{cfg.command} until={step.stage}" + (f"@{step.label}" if step.label else ""),
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "ancestors": [
            {
                "stage": a.stage,
                "label": a.label,
                "fingerprint": run_plan.fingerprint(a),
                "path": str(run_plan.folder(a).absolute()),
            }
            for a in step.ancestors()[:-1]
        ],
    }


def _link_step(run_dir: Path, step: Step, folder: Path, number: int) -> None:
    label = f"-{step.label}".replace(" ", "-") if step.label else ""
    link = run_dir / "store" / f"{number:03d}-{step.stage}{label}"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.absolute())


def _list_output_folders(cfg: Config) -> list[tuple[str, Path]]:
    return [("store", cfg.store), ("runs", cfg.runs)]


def _check_writable(knob: str, root: Path, dry_run: bool) -> None:
    try:
        _check_without_writing(root) if dry_run else _write_probe(root)
    except OSError as error:
        raise UserError(
            f"{knob}={root}: cannot be written ({error.strerror}).\n"
            f"  Give a folder that can, as {knob}=FOLDER."
        ) from error


def _write_probe(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".writable-{os.getpid()}"
    probe.write_text("")
    probe.unlink()


def _check_without_writing(root: Path) -> None:
    """The same without writing, by the folder itself or its nearest parent that exists."""
    parent = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    fault = 0
    if not parent.is_dir():
        fault = errno.EEXIST if parent == root else errno.ENOTDIR
    elif not os.access(parent, os.W_OK | os.X_OK):
        fault = errno.EROFS if os.statvfs(parent).f_flag & os.ST_RDONLY else errno.EACCES
    if fault:
        raise OSError(fault, os.strerror(fault))
