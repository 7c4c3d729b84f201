"""What of a plan is built: each Step's manifest where it counts as built from its inputs, else why it does not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.step import Identity, Step, find_checkpoint

StepStatus = tuple[store.Manifest | None, str]  # a Step's manifest, or None and why it has to run
PRUNED = "was pruned, and its files are needed"


@dataclass(frozen=True)
class RunPlan:
    """The Steps of one run in order, each fingerprint once, and which of them it is run for."""

    steps: list[Step]
    targets: list[Step]
    identity: Identity
    root: Path
    faults: tuple[str, ...] = ()  # why some fingerprints cannot be known: files that are not there
    unknown: frozenset[str] = frozenset()  # what stands in the place of those

    def fingerprint(self, step: Step) -> str:
        return self.identity.fingerprint(step)

    def folder(self, step: Step) -> Path:
        return store.step_folder(self.root, step.stage, self.fingerprint(step))


def list_unbuilt(planned: RunPlan) -> list[Step]:
    """The Steps of which the store has nothing at all."""
    return [step for step in planned.steps if store.read_manifest(planned.folder(step)) is None]


def read_statuses(planned: RunPlan, verify: bool) -> dict[str, StepStatus]:
    """By fingerprint: the manifest of each Step that need not run, or None and why. What has to run reads files, so
    a hollow Step that it reads has to run too, and so on."""
    contents: dict[str, store.Manifest] = {}
    found: dict[str, StepStatus] = {}
    for step in planned.steps:
        fingerprint = planned.fingerprint(step)
        found[fingerprint] = read_status(
            planned, step, collect_inputs(planned, step, contents), verify
        )
        if manifest := found[fingerprint][0]:
            contents[fingerprint] = manifest
    read = {planned.fingerprint(step) for step in planned.targets}
    for step in reversed(planned.steps):
        fingerprint = planned.fingerprint(step)
        manifest, _ = found[fingerprint]
        if manifest and store.is_pruned(manifest) and fingerprint in read:
            found[fingerprint] = None, PRUNED
        if found[fingerprint][0] is None:
            read |= list_fingerprints_read(planned, step)
    return found


def list_fingerprints_read(planned: RunPlan, step: Step) -> set[str]:
    """What a Step opens when it runs: its inputs, and the bases of those that are adapters."""
    read = set()
    for _, source, _ in step.edges():
        read |= {planned.fingerprint(source), *store.list_bases(planned.folder(source))}
    return read


def read_status(
    planned: RunPlan, step: Step, inputs: dict[str, Any] | None, verify: bool
) -> StepStatus:
    """The manifest of a Step that counts as built from these inputs, or None and why it does not."""
    final = planned.folder(step)
    manifest = store.read_manifest(final)
    if manifest is None:
        broken = (final / store.MANIFEST).exists()
        return (
            None,
            f"{step.stage}/{final.name} damaged: its {store.MANIFEST} cannot be read"
            if broken
            else "",
        )
    if inputs is None:
        return None, "an input is to be built first"
    reason = store.find_fault(final, manifest, inputs, find_checkpoint(step), verify)
    return (None, f"{step.stage}/{final.name} {reason}") if reason else (manifest, "")


def collect_inputs(
    planned: RunPlan, step: Step, contents: dict[str, store.Manifest]
) -> dict[str, dict[str, Any]] | None:
    """Each input's place, fingerprint and content, by flat name; None while one of them is not built."""
    found = {}
    for name, source, part in step.edges():
        fingerprint = planned.fingerprint(source)
        if fingerprint not in contents:
            return None
        found[name] = {
            "stage": source.stage,
            "fingerprint": planned.identity.fingerprint_input(source, part),
            "content": store.hash_content(contents[fingerprint], part),
            "path": str(planned.folder(source).absolute()),
            "part": part,
        }
    return found
