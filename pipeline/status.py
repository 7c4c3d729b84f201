"""Which Steps of a plan are built: each Step's manifest, or why it has to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.artifacts import find_step
from pipeline.step import Identity, Step, find_checkpoint, list_local_paths

StepStatus = tuple[store.Manifest | None, str]  # a built Step's manifest; or None and the reason
PRUNED = "was pruned, and its files are needed"


@dataclass(frozen=True)
class RunPlan:
    """The Steps of one run in order, each fingerprint once, and the targets that it is run for."""

    steps: list[Step]
    targets: list[Step]
    identity: Identity
    root: Path
    others: tuple[Path, ...] = ()  # stores that are only read
    faults: tuple[str, ...] = ()  # why some fingerprints are not known: missing files
    unknown: frozenset[str] = frozenset()  # placeholders for those fingerprints

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.root, *self.others)

    def fingerprint(self, step: Step) -> str:
        return self.identity.fingerprint(step)

    def folder(self, step: Step) -> Path:
        """Where a Step is read."""
        return find_step(self.root, f"{step.stage}/{self.fingerprint(step)}", self.others)

    def own_folder(self, step: Step) -> Path:
        """Where a Step is built."""
        return store.step_folder(self.root, step.stage, self.fingerprint(step))


def list_unbuilt(run_plan: RunPlan) -> list[Step]:
    """The Steps without any manifest in the store."""
    return [step for step in run_plan.steps if store.read_manifest(run_plan.folder(step)) is None]


def read_statuses(run_plan: RunPlan, verify: bool) -> dict[str, StepStatus]:
    """By fingerprint: the manifest of each Step that need not run, or None and why.

    A Step that runs needs the files of its inputs, so a pruned input has to run too, and so on.
    """
    contents: dict[str, store.Manifest] = {}
    statuses: dict[str, StepStatus] = {}
    for step in run_plan.steps:
        fingerprint = run_plan.fingerprint(step)
        statuses[fingerprint] = read_status(
            run_plan, step, collect_inputs(run_plan, step, contents), verify
        )
        if manifest := statuses[fingerprint][0]:
            contents[fingerprint] = manifest
    read = {run_plan.fingerprint(step) for step in run_plan.targets}
    for step in reversed(run_plan.steps):
        fingerprint = run_plan.fingerprint(step)
        manifest, _ = statuses[fingerprint]
        if manifest and store.is_pruned(manifest) and fingerprint in read:
            statuses[fingerprint] = None, PRUNED
        if statuses[fingerprint][0] is None:
            read |= list_fingerprints_read(run_plan, step)
    return statuses


def list_fingerprints_read(run_plan: RunPlan, step: Step) -> set[str]:
    """What a Step opens when it runs: its inputs, and the bases of inputs that are adapters."""
    read = set()
    for _, source, _ in step.edges():
        read |= {run_plan.fingerprint(source), *store.list_bases(run_plan.folder(source))}
    return read


def find_named_steps(run_plan: RunPlan) -> dict[str, str]:
    """Fingerprint → stage of the store's steps that the plan's configs name by a path.

    Such as an earlier run's model: these steps are not in the plan, and its Steps need them.
    """
    root, named = run_plan.root.resolve(), {}
    for step in run_plan.steps:
        for path in (path.resolve() for path in list_local_paths(step.config)):
            inside = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
            if source := store.STEP_PATH.match(inside):
                named[source["fingerprint"]] = source["stage"]
    return named


def read_status(
    run_plan: RunPlan, step: Step, inputs: dict[str, Any] | None, verify: bool
) -> StepStatus:
    """The manifest of a Step built from these inputs, or None and why it does not count."""
    final = run_plan.folder(step)
    manifest = store.read_manifest(final)
    if manifest is None:
        if not (final / store.MANIFEST).exists():
            return None, ""
        return None, f"{step.stage}/{final.name} damaged: its {store.MANIFEST} cannot be read"
    if inputs is None:
        return None, "an input has to be built first"
    reason = store.find_fault(final, manifest, inputs, find_checkpoint(step), verify)
    return (None, f"{step.stage}/{final.name} {reason}") if reason else (manifest, "")


def collect_inputs(
    run_plan: RunPlan, step: Step, contents: dict[str, store.Manifest]
) -> dict[str, dict[str, Any]] | None:
    """Each input's path, fingerprint and content by flat name; None while one is not built."""
    inputs = {}
    for name, source, part in step.edges():
        fingerprint = run_plan.fingerprint(source)
        if fingerprint not in contents:
            return None
        inputs[name] = {
            "stage": source.stage,
            "fingerprint": run_plan.identity.fingerprint_input(source, part),
            "content": store.hash_content(contents[fingerprint], part),
            "path": str(run_plan.folder(source).absolute()),
            "part": part,
        }
    return inputs
