"""The Steps of a run in order with their fingerprints, and what a dry run prints of them."""

import errno
import os
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline import store
from pipeline.artifacts import MADE_BY, STORE_MARKER
from pipeline.config import Config, renamed
from pipeline.driver.cluster import launcher
from pipeline.driver.executor import needs_merging
from pipeline.driver.ledger import Ledger
from pipeline.driver.plan_head import describe_head
from pipeline.errors import UserError, collect_faults, suggest
from pipeline.hashing import ContentCache
from pipeline.preflight import capacity, durations
from pipeline.preflight.training_fits import TrainingFits
from pipeline.status import RunPlan, StepStatus, read_statuses
from pipeline.step import STAGE_VERSIONS, Identity, Step, has_floating_revision


def select_targets(last: Step, until: str | None) -> list[Step]:
    """`until=STAGE@R`: the stage's Steps of round R, by every seed, that no other of them reads.

    R may be a label of another kind, such as merge-30. Without @R: those before the rounds, else
    those of round 1, else all Steps of the stage in evaluations.
    """
    if until is None:
        return [last]
    steps = last.ancestors()
    stage, _, label = until.partition("@")
    of_stage = [step for step in steps if step.stage == stage]
    for wanted in [label] if label else ["0", "1"]:
        if labelled := [step for step in of_stage if wanted in (step.label, step.round_text)]:
            read = {id(step) for one in labelled for step in one.ancestors() if step is not one}
            return [step for step in labelled if id(step) not in read]
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
    cache = ContentCache(cfg.own_store / ".contents.json")
    strict = Identity(lambda path: cache.hash_path(Path(path)))
    lenient = Identity(partial(_hash_if_any, cache))
    steps = [step for target in targets for step in target.ancestors()]
    unknown = [step for step in steps if collect_faults([partial(strict.fingerprint, step)])]
    faults = collect_faults(partial(strict.fingerprint, step) for step in unknown)
    faults += collect_faults(
        partial(_check_writable, knob, root, cfg.dry_run)
        for knob, root in _list_output_folders(cfg)
    )
    faults += collect_faults(partial(_check_store, root) for root in cfg.other_stores)
    identity = lenient if unknown else strict
    order: dict[str, Step] = {}
    for step in steps:
        order.setdefault(identity.fingerprint(step), step)
    if not cfg.dry_run and not faults:
        cache.save()
        root = cfg.own_store
        folders = (store.step_folder(root, step.stage, name) for name, step in order.items())
        store.check_places(path for path in folders if store.read_manifest(path) is None)
    placeholders = frozenset(map(identity.fingerprint, unknown))
    stores = cfg.own_store, cfg.other_stores
    return RunPlan(list(order.values()), targets, identity, *stores, tuple(faults), placeholders)


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
        if manifest and not store.is_pruned(manifest) and needs_merging(run_plan, step):
            reason = "will be merged, without training again"
        ledger.add_line("○" if manifest is None else "✓", step, shown, note=reason)
    to_do = [step for step in run_plan.steps if statuses[run_plan.fingerprint(step)][0] is None]
    memory = capacity.describe_memory(run_plan, fits, to_do)
    needs = launcher.describe_needs(cfg, to_do)
    times = durations.Durations(run_plan, fits).describe(to_do)
    for line in chain(capacity.describe_dtype(cfg), needs, memory, times):
        print(line)
    return statuses


def _list_output_folders(cfg: Config) -> list[tuple[str, Path]]:
    return [("store", cfg.own_store), ("runs", cfg.runs)]


def _check_store(root: Path) -> None:
    """Refuse an empty mount point: all that is built there would be built again."""
    if not any((root / name).exists() for name in (STORE_MARKER, *MADE_BY)):
        raise UserError(
            f"store: {root} is to be read, and no store is there.\n"
            "  Mount its disk, or leave it out of the stores that you give."
        )


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
