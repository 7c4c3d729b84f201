"""Runs a plan: finds what is built, spawns one worker per Step for the rest, and prints the ledger."""

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
from pipeline.config import Config, TrainConfig
from pipeline.driver.child_process import describe_failure, read_summary_lines, run_worker
from pipeline.driver.ledger import Ledger, summarize_cost
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
from pipeline.status import (
    PRUNED,
    RunPlan,
    StepStatus,
    collect_inputs,
    list_fingerprints_read,
    read_status,
    read_statuses,
)
from pipeline.step import STAGE_VERSIONS, Identity, Step, find_checkpoint, has_floating_revision

describe_device = cache(hardware.describe_device)  # it asks the driver of the GPUs


class StepFailed(Exception):
    """A Step did not finish; the ledger has told the person why. `code` is what the driver exits with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def select_targets(last: Step, until: str | None) -> list[Step]:
    """`until=STAGE@R`: that stage's last Step labelled R; without @R label 0, else 1, else every exam's."""
    everything = last.ancestors()
    if until is None:
        return [last]
    stage, _, label = until.partition("@")
    found = [step for step in everything if step.stage == stage]
    for wanted in [label] if label else ["0", "1"]:
        if labelled := [step for step in found if str(step.label) == wanted]:
            return labelled[-1:]
    if found and not label:
        return found
    if stage in STAGE_VERSIONS and not found:
        raise UserError(
            f"until={until}: this plan has no stage {stage}, it is off. What switches it on lies in conf/{stage}/."
        )
    has = sorted(
        {
            f"{s.stage}@{s.label}" if isinstance(s.label, int) and s.label else s.stage
            for s in everything
        }
    )
    raise UserError(f"until={until}: the plan has no such step. {suggest(until, has)}")


def prepare_plan(cfg: Config, targets: Iterable[Step]) -> RunPlan:
    """The Steps in order with their fingerprints; refused where one of them reads a file that is not there."""
    planned = outline_plan(cfg, targets)
    if planned.faults:
        raise UserError(*planned.faults)
    return planned


def outline_plan(cfg: Config, targets: Iterable[Step]) -> RunPlan:
    """As `prepare`, but what it would refuse is in `faults`, so that the rest of the plan is judged all the same."""
    targets = list(targets)
    cache = ContentCache(cfg.store / ".contents.json")
    strict, lenient = (
        Identity(lambda path: cache.hash_path(Path(path))),
        Identity(partial(_hash_if_any, cache)),
    )
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
        missing = (store.step_folder(cfg.store, step.stage, name) for name, step in order.items())
        store.check_places(place for place in missing if store.read_manifest(place) is None)
    nowhere = frozenset(map(identity.fingerprint, unknown))
    return RunPlan(list(order.values()), targets, identity, cfg.store, tuple(faults), nowhere)


def _hash_if_any(cache: ContentCache, path: str) -> str:
    try:
        return cache.hash_path(Path(path))
    except OSError:
        return f"? {path}"


def show_dry_run(cfg: Config, planned: RunPlan) -> dict[str, StepStatus]:
    """The ledger of what is there and what a run would build; touches nothing."""
    ledger, found = Ledger(None), read_statuses(planned, cfg.verify)
    for step in planned.steps:
        fingerprint = planned.fingerprint(step)
        manifest, reason = found[fingerprint]
        shown = (
            "?"
            if fingerprint in planned.unknown
            else f"{fingerprint}~"
            if has_floating_revision(step)
            else fingerprint
        )
        if manifest and not store.is_pruned(manifest) and _needs_merging(planned, step):
            reason = "is to be merged, without training again"
        ledger.line("○" if manifest is None else "✓", step, shown, note=reason)
    to_do = [step for step in planned.steps if found[planned.fingerprint(step)][0] is None]
    times = durations.Durations(planned).lines(to_do)
    for said in chain(
        capacity.describe_dtype(cfg), capacity.describe_memory(planned, found), times
    ):
        print(said)
    return found


def build_missing(cfg: Config, planned: RunPlan, story: Path) -> Path:
    """Build what is missing, in order; returns the folder of the last Step."""
    ledger = Ledger(story)
    write_json(
        story / store.PLAN, {planned.fingerprint(step): step.stage for step in planned.steps}
    )
    print(
        "\n".join(
            [
                f"{cfg.recipe}: {pluralize(len(planned.steps), 'step')} · {story}",
                *capacity.describe_dtype(cfg),
            ]
        )
    )
    try:
        store.rewrite_adapter_configs(planned.root)  # of a store that was moved
        while not _run_pass(cfg, planned, story, ledger):
            ledger.say(
                "a pruned step came out differently, and what follows it reads more that was pruned: once more"
            )
    finally:
        store.rewrite_adapter_configs(planned.root)  # of a checkpoint that was found elsewhere
    return planned.folder(planned.steps[-1])


def _run_pass(cfg: Config, planned: RunPlan, story: Path, ledger: Ledger) -> bool:
    """One pass over the plan; False where a Step has to run whose inputs were pruned, which nobody could foresee."""
    to_do = {
        fingerprint
        for fingerprint, (manifest, _) in read_statuses(planned, verify=False).items()
        if manifest is None
    }
    contents: dict[str, store.Manifest] = {}
    for number, step in enumerate(planned.steps):
        fingerprint = planned.fingerprint(step)
        inputs = collect_inputs(planned, step, contents)
        manifest, reason = read_status(planned, step, inputs, cfg.verify)
        if manifest and store.is_pruned(manifest) and fingerprint in to_do:
            manifest, reason = None, f"{step.stage}/{fingerprint} {PRUNED}"
        if manifest is None:
            if any(
                store.is_pruned(contents[name])
                for name in list_fingerprints_read(planned, step) & contents.keys()
            ):
                return False
            if reason:
                ledger.say(reason)
            manifest = _build_step(cfg, planned, step, inputs, story, number, ledger)
        elif _needs_merging(planned, step) and not store.is_pruned(
            manifest
        ):  # the worker finds it built, and merges
            manifest = _build_step(cfg, planned, step, inputs, story, number, ledger)
        else:
            ledger.line("✓", step, fingerprint, seconds=manifest["seconds"], counted=False)
            if _needs_merging(planned, step):
                ledger.say(
                    f"train/{fingerprint} was pruned: it has no adapter left to merge (adapter.save_merged)"
                )
        contents[fingerprint] = manifest
        preflight.check_artifact(step, planned.folder, planned.steps[number:])
        _link_step(story, step, planned.folder(step), number)
    return True


def _needs_merging(planned: RunPlan, step: Step) -> bool:
    """Whether `train.adapter.save_merged` asks for a copy that is not there."""
    wanted = isinstance(step.config, TrainConfig) and getattr(
        step.config.adapter, "save_merged", False
    )
    return wanted and not (planned.folder(step) / MERGED).exists()


def _build_step(
    cfg: Config, planned: RunPlan, step: Step, inputs: Any, story: Path, number: int, ledger: Ledger
) -> store.Manifest:
    fingerprint = planned.fingerprint(step)
    final = planned.folder(step).absolute()
    name = f"{number:03d}-{step.stage}-{fingerprint}"
    record, log = story / "steps" / f"{name}.json", story / "logs" / f"{name}.log"
    write_json(
        record, {**_make_record(cfg, planned, step, inputs, final), "story": str(story.absolute())}
    )
    log.parent.mkdir(exist_ok=True)

    started = time.monotonic()
    rest = durations.TimeLeft(planned, planned.steps[number:])
    code = run_worker(
        record,
        log,
        lambda text: ledger.show_running(step, fingerprint, text + rest.describe()),
        ledger.say,
    )
    manifest = store.read_manifest(final)
    if code not in (DONE, ALREADY_BUILT) or manifest is None:
        ledger.line("✗", step, fingerprint, seconds=time.monotonic() - started)
        raise StepFailed(
            describe_failure(step, fingerprint, code, log),
            USER_ERROR if code == USER_ERROR else FAILED,
        )
    sign = "■" if code == DONE else "✓"
    note = summarize_cost(manifest["cost"])
    ledger.line(
        sign, step, fingerprint, seconds=manifest["seconds"], note=note, counted=code == DONE
    )
    for line in read_summary_lines(log):
        ledger.say(line)
    return manifest


def _make_record(
    cfg: Config, planned: RunPlan, step: Step, inputs: Any, final: Path
) -> dict[str, Any]:
    """step.json: everything the worker needs, so that any Step can be run again by hand."""
    return {
        "stage": step.stage,
        "version": STAGE_VERSIONS[step.stage],
        "label": step.label,
        "knob": step.knob,
        "fingerprint": planned.fingerprint(step),
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
                "fingerprint": planned.fingerprint(a),
                "path": str(planned.folder(a).absolute()),
            }
            for a in step.ancestors()[:-1]
        ],
    }


def _link_step(story: Path, step: Step, folder: Path, number: int) -> None:
    label = f"-{step.label}".replace(" ", "-") if step.label else ""
    link = story / "store" / f"{number:03d}-{step.stage}{label}"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.absolute())


def _list_output_folders(cfg: Config) -> list[tuple[str, Path]]:
    return [("store", cfg.store), ("runs", cfg.runs)]


def _check_writable(knob: str, root: Path, look_only: bool) -> None:
    try:
        _check_without_writing(root) if look_only else _write_probe(root)
    except OSError as error:
        raise UserError(
            f"{knob}={root}: cannot be written ({error.strerror}).\n  Give a folder that can, as {knob}=FOLDER."
        ) from error


def _write_probe(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".writable-{os.getpid()}"
    probe.write_text("")
    probe.unlink()


def _check_without_writing(root: Path) -> None:
    """The same, told without writing: by the folder itself, or by the nearest one in which it would be made."""
    there = next(place for place in (root, *root.absolute().parents) if os.path.lexists(place))
    fault = 0
    if not there.is_dir():
        fault = errno.EEXIST if there == root else errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    if fault:
        raise OSError(fault, os.strerror(fault))
