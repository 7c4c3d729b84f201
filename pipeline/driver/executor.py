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
from pipeline.driver.child_process import failure, spawn, told
from pipeline.driver.ledger import Ledger, told_in_short
from pipeline.errors import BROKE, DONE, FOUND, REFUSED, UserError, many, nearest, refusals
from pipeline.hashing import ContentCache
from pipeline.models.merging import MERGED
from pipeline.preflight import capacity, durations
from pipeline.status import PRUNED, Found, Planned, inputs_of, look, read_by, survey
from pipeline.step import STAGE_VERSIONS, Identity, Step, floats, place_of

DEVICE = cache(hardware.device)  # it asks the driver of the GPUs


class StepFailed(Exception):
    """A Step did not finish; the ledger has told the person why. `code` is what the driver exits with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def select(last: Step, until: str | None) -> list[Step]:
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
    raise UserError(f"until={until}: the plan has no such step. {nearest(until, has)}")


def prepare(cfg: Config, targets: Iterable[Step]) -> Planned:
    """The Steps in order with their fingerprints; refused where one of them reads a file that is not there."""
    planned = outline(cfg, targets)
    if planned.faults:
        raise UserError(*planned.faults)
    return planned


def outline(cfg: Config, targets: Iterable[Step]) -> Planned:
    """As `prepare`, but what it would refuse is in `faults`, so that the rest of the plan is judged all the same."""
    targets = list(targets)
    cache = ContentCache(cfg.store / ".contents.json")
    strict, lenient = (
        Identity(lambda path: cache.of(Path(path))),
        Identity(partial(_content_if_any, cache)),
    )
    steps = [step for target in targets for step in target.ancestors()]
    unknown = [step for step in steps if refusals([partial(strict.fingerprint, step)])]
    faults = refusals(partial(strict.fingerprint, step) for step in unknown)
    faults += refusals(partial(_writable, knob, root, cfg.dry_run) for knob, root in _written(cfg))
    identity = lenient if unknown else strict
    order: dict[str, Step] = {}
    for step in steps:
        order.setdefault(identity.fingerprint(step), step)
    if not cfg.dry_run and not faults:
        cache.save()
        missing = (store.folder(cfg.store, step.stage, name) for name, step in order.items())
        store.check_places(place for place in missing if store.read_manifest(place) is None)
    nowhere = frozenset(map(identity.fingerprint, unknown))
    return Planned(list(order.values()), targets, identity, cfg.store, tuple(faults), nowhere)


def _content_if_any(cache: ContentCache, path: str) -> str:
    try:
        return cache.of(Path(path))
    except OSError:
        return f"? {path}"


def dry_run(cfg: Config, planned: Planned) -> dict[str, Found]:
    """The ledger of what is there and what a run would build; touches nothing."""
    ledger, found = Ledger(None), survey(planned, cfg.verify)
    for step in planned.steps:
        fingerprint = planned.fingerprint(step)
        manifest, reason = found[fingerprint]
        shown = (
            "?"
            if fingerprint in planned.unknown
            else f"{fingerprint}~"
            if floats(step)
            else fingerprint
        )
        if manifest and not store.hollow(manifest) and _lacks_merged(planned, step):
            reason = "is to be merged, without training again"
        ledger.line("○" if manifest is None else "✓", step, shown, note=reason)
    to_do = [step for step in planned.steps if found[planned.fingerprint(step)][0] is None]
    times = durations.Durations(planned).lines(to_do)
    for said in chain(capacity.dtype_lines(cfg), capacity.lines(planned, found), times):
        print(said)
    return found


def run(cfg: Config, planned: Planned, story: Path) -> Path:
    """Build what is missing, in order; returns the folder of the last Step."""
    ledger = Ledger(story)
    write_json(
        story / store.PLAN, {planned.fingerprint(step): step.stage for step in planned.steps}
    )
    print(
        "\n".join(
            [
                f"{cfg.recipe}: {many(len(planned.steps), 'step')} · {story}",
                *capacity.dtype_lines(cfg),
            ]
        )
    )
    try:
        store.name_bases(planned.root)  # of a store that was moved
        while not _built(cfg, planned, story, ledger):
            ledger.say(
                "a pruned step came out differently, and what follows it reads more that was pruned: once more"
            )
    finally:
        store.name_bases(planned.root)  # of a checkpoint that was found elsewhere
    return planned.folder(planned.steps[-1])


def _built(cfg: Config, planned: Planned, story: Path, ledger: Ledger) -> bool:
    """One pass over the plan; False where a Step has to run whose inputs were pruned, which nobody could foresee."""
    to_do = {
        fingerprint
        for fingerprint, (manifest, _) in survey(planned, verify=False).items()
        if manifest is None
    }
    contents: dict[str, store.Manifest] = {}
    for number, step in enumerate(planned.steps):
        fingerprint = planned.fingerprint(step)
        inputs = inputs_of(planned, step, contents)
        manifest, reason = look(planned, step, inputs, cfg.verify)
        if manifest and store.hollow(manifest) and fingerprint in to_do:
            manifest, reason = None, f"{step.stage}/{fingerprint} {PRUNED}"
        if manifest is None:
            if any(
                store.hollow(contents[name]) for name in read_by(planned, step) & contents.keys()
            ):
                return False
            if reason:
                ledger.say(reason)
            manifest = _build(cfg, planned, step, inputs, story, number, ledger)
        elif _lacks_merged(planned, step) and not store.hollow(
            manifest
        ):  # the worker finds it built, and merges
            manifest = _build(cfg, planned, step, inputs, story, number, ledger)
        else:
            ledger.line("✓", step, fingerprint, seconds=manifest["seconds"], counted=False)
            if _lacks_merged(planned, step):
                ledger.say(
                    f"train/{fingerprint} was pruned: it has no adapter left to merge (adapter.save_merged)"
                )
        contents[fingerprint] = manifest
        preflight.check_made(step, planned.folder, planned.steps[number:])
        _link(story, step, planned.folder(step), number)
    return True


def _lacks_merged(planned: Planned, step: Step) -> bool:
    """Whether `train.adapter.save_merged` asks for a copy that is not there."""
    wanted = isinstance(step.config, TrainConfig) and getattr(
        step.config.adapter, "save_merged", False
    )
    return wanted and not (planned.folder(step) / MERGED).exists()


def _build(
    cfg: Config, planned: Planned, step: Step, inputs: Any, story: Path, number: int, ledger: Ledger
) -> store.Manifest:
    fingerprint = planned.fingerprint(step)
    final = planned.folder(step).absolute()
    name = f"{number:03d}-{step.stage}-{fingerprint}"
    record, log = story / "steps" / f"{name}.json", story / "logs" / f"{name}.log"
    write_json(
        record, {**_record(cfg, planned, step, inputs, final), "story": str(story.absolute())}
    )
    log.parent.mkdir(exist_ok=True)

    started = time.monotonic()
    rest = durations.Rest(planned, planned.steps[number:])
    code = spawn(
        record, log, lambda text: ledger.running(step, fingerprint, text + rest.told()), ledger.say
    )
    manifest = store.read_manifest(final)
    if code not in (DONE, FOUND) or manifest is None:
        ledger.line("✗", step, fingerprint, seconds=time.monotonic() - started)
        raise StepFailed(
            failure(step, fingerprint, code, log), REFUSED if code == REFUSED else BROKE
        )
    sign = "■" if code == DONE else "✓"
    note = told_in_short(manifest["cost"])
    ledger.line(
        sign, step, fingerprint, seconds=manifest["seconds"], note=note, counted=code == DONE
    )
    for line in told(log):
        ledger.say(line)
    return manifest


def _record(cfg: Config, planned: Planned, step: Step, inputs: Any, final: Path) -> dict[str, Any]:
    """step.json: everything the worker needs, so that any Step can be run again by hand."""
    return {
        "stage": step.stage,
        "version": STAGE_VERSIONS[step.stage],
        "label": step.label,
        "knob": step.knob,
        "fingerprint": planned.fingerprint(step),
        "out": str(final),
        "verify": cfg.verify,
        "place": place_of(step),
        "device": DEVICE(),
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


def _link(story: Path, step: Step, folder: Path, number: int) -> None:
    label = f"-{step.label}".replace(" ", "-") if step.label else ""
    link = story / "store" / f"{number:03d}-{step.stage}{label}"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(folder.absolute())


def _written(cfg: Config) -> list[tuple[str, Path]]:
    return [("store", cfg.store), ("runs", cfg.runs)]


def _writable(knob: str, root: Path, look_only: bool) -> None:
    try:
        _would_be_written(root) if look_only else _is_written(root)
    except OSError as error:
        raise UserError(
            f"{knob}={root}: cannot be written ({error.strerror}).\n  Give a folder that can, as {knob}=FOLDER."
        ) from error


def _is_written(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".writable-{os.getpid()}"
    probe.write_text("")
    probe.unlink()


def _would_be_written(root: Path) -> None:
    """The same, told without writing: by the folder itself, or by the nearest one in which it would be made."""
    there = next(place for place in (root, *root.absolute().parents) if os.path.lexists(place))
    fault = 0
    if not there.is_dir():
        fault = errno.EEXIST if there == root else errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    if fault:
        raise OSError(fault, os.strerror(fault))
