"""Steps on a cluster. The driver plans, submits and follows; nodes build, with the same worker.

Each Step, and each process that helps it with its shards, is a `ClusterTask`: a module of ours, run
on some node, which ends with the driver. See `on_ray` and `on_slurm`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

from pipeline import hardware
from pipeline.artifacts import STORE_MARKER
from pipeline.config import ClusterConfig, Config, LaunchedRuntime
from pipeline.driver.cluster.needs import Needs, StepNeeds, check_machines, find_needs
from pipeline.errors import UserError
from pipeline.step import Step

WORKER_MODULE = "pipeline.driver.worker"
HELPER_PATIENCE = 10**8  # seconds; a helper is ended with its step, or with the run


@dataclass(frozen=True)
class ClusterTask:
    """One module to run on a node, or `count` nodes. `words`: its name and arguments.

    With several `machines` it runs on the first of them, and on each of the others
    `partner_words`; all start together and end with the first.
    """

    name: str
    words: list[str]
    log: Path
    run_dir: Path
    needs: Needs
    count: int | None = None  # None: a Step. A number: what helps it, restarted when it crashes
    machines: int = 1
    partner_words: tuple[str, ...] = ()


class RunningTask(Protocol):
    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it waits or runs."""
        ...

    def explain_wait(self) -> str | None:
        """What it waits for; None once it has started."""
        ...

    def stop(self) -> None:
        """Ask for its end, and do not wait."""
        ...


class Cluster(Protocol):
    has_gpus: bool

    def describe(self) -> str: ...

    def explain_misfit(self, needs: Needs, machines: int) -> str | None:
        """Why no node, or not so many, can ever run this; None if they can."""
        ...

    def check_nodes(self, folders: list[Path], files: list[Path]) -> None:
        """Refuse nodes that do not see these, or have other versions. It writes into folders."""
        ...

    def start(self, task: ClusterTask) -> RunningTask: ...

    def wait_for_stopped(self) -> None:
        """After `stop`, until no node works for this run."""
        ...


_connected: dict[str, Cluster | UserError] = {}  # the points of a sweep share one


def connect(cfg: ClusterConfig) -> Cluster | None:
    """The cluster, which has to answer; None where this machine builds the steps.

    It is asked once: one that does not answer takes up to a minute.
    """
    if cfg.kind == "local":
        return None
    key = cfg.model_dump_json(exclude={"resources"})
    if key not in _connected:
        try:
            _connected[key] = import_module(f"{__package__}.on_{cfg.kind}").connect(cfg)
        except UserError as error:
            _connected[key] = error
    if isinstance(found := _connected[key], UserError):
        raise found
    return found


# ── before anything is built ──────────────────────────────────────────────────────────────────────


def describe_needs(cfg: Config, steps: list[Step]) -> Iterator[str]:
    """For the plan: the cluster, and what the steps ask of it; one line for all that are alike."""
    if cfg.cluster.kind == "local":
        return
    try:
        cluster = connect(cfg.cluster)
    except UserError:  # `list_checks` reports it
        cluster = None
    if cluster:
        yield f"  {cluster.describe()}"
    alike: dict[StepNeeds, list[str]] = {}
    for step in steps:
        needs = find_needs(cfg.cluster, step, has_gpus=cluster is None or cluster.has_gpus)
        alike.setdefault(needs, []).append(f"{step.stage} {step.label_text}".rstrip())
    for needs, names in alike.items():
        yield f"  {needs.describe()}: {', '.join(dict.fromkeys(names))}"


def list_checks(cfg: Config, coming: list[Step]) -> Iterator[Callable[[], None]]:
    """Refuse what cannot run on the chosen cluster, which would wait there forever."""
    if cfg.cluster.kind == "local":
        return
    yield partial(check_machines, cfg.cluster)
    yield partial(_check_dtype, cfg)
    yield partial(check_steps, cfg.cluster, coming)
    if not cfg.dry_run and coming:
        yield partial(_check_nodes, cfg)


def check_steps(cfg: ClusterConfig, coming: list[Step]) -> None:
    cluster = connect(cfg)
    assert cluster
    faults: dict[tuple[Needs, int], str | None] = {}
    for step in coming:
        needs = find_needs(cfg, step, cluster.has_gpus)
        for one, machines in {(needs.own, needs.machines), (needs.helper, 1)} - faults.keys():
            knob, fault = f"cluster.resources.{step.stage}", cluster.explain_misfit(one, machines)
            faults[one, machines] = fault and (
                f"{knob}: {step.stage} asks for {StepNeeds(one, one, 0, machines).describe()},"
                f" and {fault}.\n"
                f"  Give less ({knob}.gpus, cpus, memory or hours), or start nodes that have it."
            )
        runtime = getattr(step.config, "runtime", None)
        if isinstance(runtime, LaunchedRuntime):
            _check_training(step, runtime, needs.own.gpus)
    if unfit := [fault for fault in faults.values() if fault]:
        raise UserError(*unfit)


def _check_training(step: Step, runtime: LaunchedRuntime, gpus: int) -> None:
    batch = getattr(step.config, "batch", 0)
    if fault := runtime.explain_misfit(batch, gpus, step.knob):
        raise UserError(f"{fault}\n  On this cluster it has {gpus}: cluster.resources.{step.stage}")


def _check_dtype(cfg: Config) -> None:
    """`auto` was resolved by the machine of the driver, and enters identity."""
    cluster = connect(cfg.cluster)
    if cfg.dtype == hardware.AUTO and cluster and cluster.has_gpus and not hardware.list_gpus():
        raise UserError(
            f"dtype=auto is {hardware.resolve_dtype(cfg.dtype)} on this machine, which has no GPU;"
            " the cluster has some.\n"
            "  Give dtype=bfloat16, or dtype=float32 for GPUs before the A100."
        )


def _check_nodes(cfg: Config) -> None:
    cluster = connect(cfg.cluster)
    assert cluster
    written = [cfg.own_store.absolute(), cfg.runs.absolute()]
    cluster.check_nodes(written, [root.absolute() / STORE_MARKER for root in cfg.other_stores])


# ── while a run is built ──────────────────────────────────────────────────────────────────────────


class ClusterWorkers:
    """Starts Steps on a cluster, as `prepared_parent.Workers` does on this machine."""

    runs_side_by_side = True

    def __init__(self, cfg: ClusterConfig, cluster: Cluster, run_dir: Path):
        self._cfg, self._cluster, self._run_dir = cfg, cluster, run_dir.absolute()

    def should_wait(self) -> bool:
        """Nothing is loaded here for several Steps."""
        return False

    def start(self, log: Path, step: Step) -> "ClusterWorker":
        needs = find_needs(self._cfg, step, self._cluster.has_gpus)
        return ClusterWorker(self._cluster, step.stage, needs, self._run_dir)

    def close(self) -> None:
        self._cluster.wait_for_stopped()


class ClusterWorker:
    """One Step on a cluster and what helps it; as `child_process.StepWorker` is used."""

    def __init__(self, cluster: Cluster, stage: str, needs: StepNeeds, run_dir: Path):
        self._cluster, self._stage, self._needs, self._run_dir = cluster, stage, needs, run_dir
        self._step: RunningTask
        self._helpers: RunningTask | None = None

    def start_step(self, record: Path, log: Path) -> None:
        log.write_bytes(b"")
        words, place, needs = [WORKER_MODULE, str(record.absolute())], log.absolute(), self._needs
        # What joins a step does it by the same files and leases as machines that join by hand.
        join = ["pipeline", "work", str(self._run_dir), f"wait={HELPER_PATIENCE}"]
        fingerprint = json.loads(record.read_text())["fingerprint"]
        own = ClusterTask(
            record.stem,
            words,
            place,
            self._run_dir,
            needs.own,
            machines=needs.machines,
            # Partners of another training would end with their own.
            partner_words=(*join, f"step={self._stage}@{fingerprint}"),
        )
        self._step = self._cluster.start(own)
        if needs.helpers:
            name = f"{record.stem}-help"
            place = place.with_name(f"{name}.log")
            self._helpers = self._cluster.start(
                ClusterTask(
                    name,
                    [*join, f"step={self._stage}"],
                    place,
                    self._run_dir,
                    needs.helper,
                    needs.helpers,
                )
            )

    def poll(self) -> int | None:
        return self._step.poll()

    def explain_wait(self) -> str | None:
        if reason := self._step.explain_wait():
            return f"waits for {replace(self._needs, helpers=0).describe()}: {reason}"
        return None

    def end(self) -> None:
        """Its Step has ended, and so has its process."""
        if self._helpers:
            self._helpers.stop()

    def wait(self) -> None:
        """What helped may still be closing its model."""

    def stop(self) -> None:
        self._step.stop()
        self.end()


def open_workers(cfg: Config, run_dir: Path) -> ClusterWorkers | None:
    cluster = connect(cfg.cluster)
    return ClusterWorkers(cfg.cluster, cluster, run_dir) if cluster else None
