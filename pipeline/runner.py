"""Runs a plan: finds what is built, spawns one worker per Step for the rest, and prints the ledger."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import door, store
from pipeline.artifacts import write_json
from pipeline.config import Config
from pipeline.content import ContentCache
from pipeline.errors import BROKE, DONE, FOUND, REFUSED, Refusal, nearest
from pipeline.ledger import Ledger
from pipeline.spawn import failure, spawn, told
from pipeline.step import STAGE_VERSIONS, Identity, Step, floats, place_of


class StepFailed(Exception):
    """A Step did not finish; the ledger has told the person why. `code` is what the driver exits with."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Planned:
    """The Steps of one run in order, each fingerprint once."""

    steps: list[Step]
    identity: Identity

    def fingerprint(self, step: Step) -> str:
        return self.identity.fingerprint(step)


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
    has = sorted({f"{s.stage}@{s.label}" if isinstance(s.label, int) and s.label else s.stage for s in everything})
    raise Refusal(f"until={until}: the plan has no such step. {nearest(until, has)}")


def prepare(cfg: Config, targets: Iterable[Step]) -> Planned:
    cache = ContentCache(cfg.store / ".contents.json")
    identity = Identity(lambda path: cache.of(Path(path)))
    order: dict[str, Step] = {}
    for target in targets:
        for step in target.ancestors():
            order.setdefault(identity.fingerprint(step), step)
    if not cfg.dry_run:
        _writable("store", cfg.store)
        _writable("runs", cfg.runs)
        cache.save()
    return Planned(list(order.values()), identity)


def unbuilt(cfg: Config, planned: Planned) -> list[Step]:
    """The Steps of which the store has nothing yet."""
    folders = {step: store.folder(cfg.store, step.stage, planned.fingerprint(step)) for step in planned.steps}
    return [step for step, folder in folders.items() if store.read_manifest(folder) is None]


def dry_run(cfg: Config, planned: Planned) -> None:
    """The ledger of what is there and what a run would build; touches nothing."""
    ledger, to_do = Ledger(None), 0
    contents: dict[str, store.Manifest] = {}
    for step in planned.steps:
        inputs = _inputs(cfg.store, planned, step, contents)
        manifest, reason = _look(cfg, planned, step, inputs)
        if manifest is None:
            to_do += 1
        else:
            contents[planned.fingerprint(step)] = manifest
        mark = "~" if floats(step) else ""
        ledger.line("○" if manifest is None else "✓", step, planned.fingerprint(step) + mark, note=reason)
    print(f"{len(planned.steps)} steps, {to_do} to do")


def run(cfg: Config, planned: Planned, story: Path) -> Path:
    """Build what is missing, in order; returns the folder of the last Step."""
    ledger = Ledger(story)
    contents: dict[str, store.Manifest] = {}
    print(f"{cfg.recipe}: {len(planned.steps)} steps · {story}")
    for number, step in enumerate(planned.steps):
        fingerprint = planned.fingerprint(step)
        inputs = _inputs(cfg.store, planned, step, contents)
        manifest, reason = _look(cfg, planned, step, inputs)
        if manifest is None:
            if reason:
                ledger.say(reason)
            manifest = _build(cfg, planned, step, inputs, story, number, ledger)
        else:
            ledger.line("✓", step, fingerprint, seconds=manifest["seconds"], counted=False)
        contents[fingerprint] = manifest
        door.check_prompts(step, store.folder(cfg.store, step.stage, fingerprint), planned.steps[number:])
        _link(story, cfg.store, step, fingerprint, number)
    return store.folder(cfg.store, planned.steps[-1].stage, planned.fingerprint(planned.steps[-1]))


def _look(
    cfg: Config, planned: Planned, step: Step, inputs: dict[str, Any] | None
) -> tuple[store.Manifest | None, str]:
    """The manifest of a Step that counts as built from these inputs, or None and why it does not."""
    final = store.folder(cfg.store, step.stage, planned.fingerprint(step))
    manifest = store.read_manifest(final)
    if manifest is None:
        return None, ""
    if inputs is None:
        return None, "an input is to be built first"
    reason = store.fault(final, manifest, inputs, place_of(step), cfg.verify)
    return (None, f"{step.stage}/{final.name} {reason}") if reason else (manifest, "")


def _inputs(
    root: Path, planned: Planned, step: Step, contents: dict[str, store.Manifest]
) -> dict[str, dict[str, Any]] | None:
    """Each input's place, fingerprint and content, by flat name; None while one of them is not built."""
    found = {}
    for name, source, part in step.edges():
        fingerprint = planned.fingerprint(source)
        if fingerprint not in contents:
            return None
        found[name] = {
            "stage": source.stage,
            "fingerprint": planned.identity.of_input(source, part),
            "content": store.content(contents[fingerprint], part),
            "path": str(store.folder(root, source.stage, fingerprint).absolute()),
            "part": part,
        }
    return found


def _build(
    cfg: Config, planned: Planned, step: Step, inputs: Any, story: Path, number: int, ledger: Ledger
) -> store.Manifest:
    fingerprint = planned.fingerprint(step)
    final = store.folder(cfg.store, step.stage, fingerprint).absolute()
    name = f"{number:02d}-{step.stage}-{fingerprint}"
    record, log = story / "steps" / f"{name}.json", story / "logs" / f"{name}.log"
    write_json(record, _record(cfg, planned, step, inputs, final))
    log.parent.mkdir(exist_ok=True)

    started = time.monotonic()
    code = spawn(record, log, lambda text: ledger.running(step, fingerprint, text))
    manifest = store.read_manifest(final)
    if code not in (DONE, FOUND) or manifest is None:
        ledger.line("✗", step, fingerprint, seconds=time.monotonic() - started)
        raise StepFailed(failure(step, fingerprint, code, log), REFUSED if code == REFUSED else BROKE)
    sign = "■" if code == DONE else "✓"
    dropped = manifest["cost"].get("dropped")
    note = f"{dropped} dropped (dropped.parquet)" if dropped else ""
    ledger.line(sign, step, fingerprint, seconds=manifest["seconds"], note=note, counted=code == DONE)
    for line in told(log):
        ledger.say(line)
    return manifest


def _record(cfg: Config, planned: Planned, step: Step, inputs: Any, final: Path) -> dict[str, Any]:
    """step.json: everything the worker needs, so that any Step can be run again by hand."""
    return {
        "stage": step.stage,
        "version": STAGE_VERSIONS[step.stage],
        "label": step.label,
        "fingerprint": planned.fingerprint(step),
        "out": str(final),
        "verify": cfg.verify,
        "place": place_of(step),
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "ancestors": [
            {
                "stage": a.stage,
                "label": a.label,
                "fingerprint": planned.fingerprint(a),
                "path": str(store.folder(cfg.store, a.stage, planned.fingerprint(a)).absolute()),
            }
            for a in step.ancestors()[:-1]
        ],
    }


def _link(story: Path, root: Path, step: Step, fingerprint: str, number: int) -> None:
    label = f"-{step.label}".replace(" ", "-") if step.label else ""
    link = story / "store" / f"{number:02d}-{step.stage}{label}"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(store.folder(root, step.stage, fingerprint).absolute())


def _writable(knob: str, root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".writable-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Refusal(
            f"{knob}={root}: cannot be written ({error.strerror}).\n  Give a folder that can, as {knob}=FOLDER."
        ) from error
