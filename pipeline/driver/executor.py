"""Runs a plan: builds what is missing in worker processes, and prints the ledger."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import hardware, preflight, store
from pipeline.artifacts import write_json
from pipeline.config import Config, TrainConfig
from pipeline.driver.child_process import StepWorker
from pipeline.driver.cluster.launcher import ClusterWorker, open_workers
from pipeline.driver.early_scoring import EARLY_FOLDER, can_score_early, has_shards_to_score
from pipeline.driver.ledger import FAILED_SIGN, Ledger, summarize_cost
from pipeline.driver.model_sharing import find_model_key, opens_model, writes_verdicts
from pipeline.driver.prepared_parent import Workers
from pipeline.driver.worker_log import LogWatch, describe_failure, read_summary_lines
from pipeline.errors import (
    ALREADY_BUILT,
    DONE,
    FAILED,
    INTERRUPTED,
    USER_ERROR,
    UserError,
    pluralize,
)
from pipeline.models.merging import MERGED
from pipeline.preflight import capacity, durations
from pipeline.status import (
    PRUNED,
    RunPlan,
    collect_inputs,
    find_named_steps,
    list_fingerprints_read,
    read_status,
    read_statuses,
)
from pipeline.step import STAGE_VERSIONS, Step, find_checkpoint

AnyWorker = StepWorker | ClusterWorker
TICK = 0.02  # seconds between two looks at the workers
SHOWN_AFTER = 90.0  # seconds: NFS keeps the answer that a folder is missing for up to 60
describe_device = cache(hardware.describe_device)  # it starts nvidia-smi


class StepFailed(Exception):
    """A Step failed. The text says why; `code` is the driver's exit code, and then the worker's."""

    def __init__(self, message: str, code: int, worker_exit: int):
        super().__init__(message)
        self.code, self.worker_exit = code, worker_exit


def write_plan(run_plan: RunPlan, run_dir: Path) -> None:
    """The fingerprints of all Steps that the run needs, by which it is known as a run."""
    stages = {run_plan.fingerprint(step): step.stage for step in run_plan.steps}
    write_json(run_dir / store.PLAN, {**find_named_steps(run_plan), **stages})


def build_missing(
    cfg: Config,
    run_plan: RunPlan,
    run_dir: Path,
    commands: Mapping[str, str] | None = None,
) -> Path:
    """Build what is missing, in order. Returns the folder of the last Step.

    `commands`, by fingerprint: the plan is that of several runs, and a Step that fails stops none
    of the others.
    """
    ledger = Ledger(run_dir)
    head = f"{cfg.recipe}: {pluralize(len(run_plan.steps), 'step')} · {run_dir}"
    print("\n".join([head, *capacity.describe_dtype(cfg)]))
    try:
        store.rewrite_adapter_configs(run_plan.root)  # the store may have been moved
        while not _Pass(cfg, run_plan, run_dir, ledger, commands).run():
            ledger.print_note(
                "a pruned step was rebuilt with other content, so that more of them are needed"
            )
    finally:
        store.rewrite_adapter_configs(run_plan.root)  # a checkpoint may have been moved
    return run_plan.folder(run_plan.steps[-1])


class _Pass:
    """One pass over the plan: each Step is built as soon as its inputs are.

    On this machine at most one Step that opens a model runs at a time, and at most one that opens
    none. A worker whose Step is built keeps its model open while a Step that can use it is ready.
    On a cluster all Steps that can be built are started, and wait there for what they need.
    """

    def __init__(
        self,
        cfg: Config,
        run_plan: RunPlan,
        run_dir: Path,
        ledger: Ledger,
        commands: Mapping[str, str] | None,
    ):
        self._cfg, self._run_plan, self._run_dir, self._ledger = cfg, run_plan, run_dir, ledger
        self._commands = commands or {}
        self._stops_at_failure = commands is None
        statuses = read_statuses(run_plan, verify=False)
        self._to_do = {name for name, (manifest, _) in statuses.items() if manifest is None}
        self._workers = open_workers(cfg, run_dir) or Workers(
            run_dir / "logs", cfg.preload and len(self._to_do) > 1
        )
        self._waiting = [*enumerate(run_plan.steps)]  # with their number in the plan
        self._ready: list[_ReadyStep] = []
        self._running: list[_RunningStep] = []
        self._contents: dict[str, store.Manifest] = {}
        self._idle: _IdleWorker | None = None
        self._early: _EarlyScoring | None = None
        self._ending: list[AnyWorker] = []  # without a model: their memory is small
        self._needs_pruned = False
        self._pending: list[str] = []  # what Steps wait for that others can do without

    def run(self) -> bool:
        """False if a Step turned out to need inputs that were pruned."""
        try:
            self._collect_ready()
            while self._running or (self._ready and not self._needs_pruned):
                if not self._needs_pruned:
                    self._start_what_can()
                time.sleep(TICK)
                if self._follow_running():
                    self._collect_ready()
        finally:
            self._stop()
        if self._pending and not self._needs_pruned and self._stops_at_failure:
            raise StepFailed("\n".join(self._pending), INTERRUPTED, INTERRUPTED)
        return not self._needs_pruned

    def _stop(self) -> None:
        for running in self._running:
            running.worker.stop()
            self._end_early(running)
        self._close_idle()
        for worker in self._ending:
            worker.wait()
        self._workers.close()

    def _collect_ready(self) -> None:
        """Settle the waiting Steps that are built, and list those that can be built now."""
        waiting, self._waiting = self._waiting, []
        for number, step in waiting:
            inputs = collect_inputs(self._run_plan, step, self._contents)
            if inputs is None:
                self._waiting.append((number, step))
            elif not self._needs_pruned:
                self._settle(number, step, inputs)

    def _settle(self, number: int, step: Step, inputs: dict[str, Any]) -> None:
        run_plan, ledger = self._run_plan, self._ledger
        fingerprint = run_plan.fingerprint(step)
        manifest, reason = read_status(run_plan, step, inputs, self._cfg.verify)
        if manifest and store.is_pruned(manifest) and fingerprint in self._to_do:
            manifest, reason = None, f"{step.stage}/{fingerprint} {PRUNED}"
        if manifest is None:
            read = list_fingerprints_read(run_plan, step) & self._contents.keys()
            self._needs_pruned = any(store.is_pruned(self._contents[name]) for name in read)
            if reason:
                ledger.print_note(reason)
            self._ready.append(_ReadyStep(number, step, inputs))
        elif needs_merging(run_plan, step) and not store.is_pruned(manifest):
            # The worker finds the step built, and merges.
            self._ready.append(_ReadyStep(number, step, inputs))
        else:
            ledger.add_line("✓", step, fingerprint, seconds=manifest["seconds"], counted=False)
            if needs_merging(run_plan, step):
                ledger.print_note(
                    f"train/{fingerprint} was pruned: no adapter is left to merge"
                    " (adapter.save_merged)"
                )
            self._finish(number, step, manifest)

    def _finish(self, number: int, step: Step, manifest: store.Manifest) -> None:
        later = [*(ready.step for ready in self._ready), *(step for _, step in self._waiting)]
        coming = [one for one in later if self._run_plan.fingerprint(one) in self._to_do]
        try:
            preflight.check_artifact(step, self._run_plan.folder, coming)
        except UserError as error:
            if self._stops_at_failure:
                raise
            self._ledger.print_note(str(error))
            return  # nothing that needs it is built
        self._contents[self._run_plan.fingerprint(step)] = manifest
        _link_step(self._run_dir, step, self._run_plan.folder(step), number)

    # ── which Step comes next ─────────────────────────────────────────────────────────────────────

    def _start_what_can(self) -> None:
        if self._workers.runs_side_by_side:
            self._start_side_by_side()
            return
        kinds_running = [opens_model(running.step) for running in self._running]
        light = [ready for ready in self._ready if not opens_model(ready.step)]
        next_one = None if True in kinds_running else self._choose_model_step()
        if next_one and (self._idle or not self._workers.should_wait()):
            self._start(next_one)
        if light and False not in kinds_running:
            self._start(light[0])
        if self._early is None:
            self._early = self._start_early()

    def _start_side_by_side(self) -> None:
        """All that are ready, but one step at a time that writes verdicts."""
        for ready in [*self._ready]:
            others = any(writes_verdicts(running.step) for running in self._running)
            if not (others and writes_verdicts(ready.step)):
                self._submit(ready)

    def _submit(self, ready: "_ReadyStep") -> None:
        try:
            self._start(ready)
        except UserError as error:  # such as one of Slurm's limits
            if self._stops_at_failure:
                raise
            self._ledger.print_note(str(error))

    def _start_early(self) -> "_EarlyScoring | None":
        """Score the finished shards of samples that are in the making."""
        for running in (one for one in self._running if one.step.stage == "sample"):
            folder = self._run_plan.own_folder(running.step).absolute()
            fingerprint = self._run_plan.fingerprint(running.step)
            scoring = [
                (number, step)
                for number, step in self._waiting
                if can_score_early(step)
                and self._run_plan.fingerprint(step.inputs["samples"]) == fingerprint
            ]
            if not scoring or not has_shards_to_score(folder):
                continue
            number, step = scoring[0]
            unpublished: store.Manifest = {"files": []}
            contents = {**self._contents, fingerprint: unpublished}
            inputs = collect_inputs(self._run_plan, step, contents)
            if inputs is None:
                continue
            inputs["samples"]["path"] = str(store.find_work_folder(folder))
            record, log = self._write_record(_ReadyStep(number, step, inputs), early_only=True)
            worker = self._workers.start(log, step)
            worker.start_step(record, log)
            return _EarlyScoring(running, worker)
        return None

    def _end_early(self, running: "_RunningStep") -> None:
        """Its samples are published: the Step itself scores the rest."""
        if self._early and self._early.samples is running:
            self._early.worker.stop()
            self._early = None

    def _choose_model_step(self) -> "_ReadyStep | None":
        """The next Step that opens a model: first those that can use the open one."""
        ready = [one for one in self._ready if opens_model(one.step)]
        if self._idle is None:
            return ready[0] if ready else None
        if sharing := [one for one in ready if self._find_key(one.step) == self._idle.key]:
            return sharing[0]
        # Steps that open no model may lead to one that uses the open model, such as a later wave.
        has_light_work = len(ready) < len(self._ready) or self._running
        waiting = [step for _, step in self._waiting if opens_model(step)]
        if has_light_work and any(self._find_key(step) == self._idle.key for step in waiting):
            return None
        self._close_idle()
        return ready[0] if ready else None

    def _find_key(self, step: Step) -> str | None:
        return find_model_key(step, self._run_plan.folder)

    def _close_idle(self) -> None:
        if self._idle:
            self._end_worker(self._idle.worker)
            self._idle = None

    def _end_worker(self, worker: AnyWorker, wait: bool = True) -> None:
        worker.end()
        if wait:
            worker.wait()
        else:
            self._ending.append(worker)

    # ── one Step ──────────────────────────────────────────────────────────────────────────────────

    def _start(self, ready: "_ReadyStep") -> None:
        self._ready.remove(ready)
        step, number = ready.step, ready.number
        record, log = self._write_record(ready)
        worker = None
        if self._idle and opens_model(step):  # `_choose_model_step` has compared their keys
            worker, self._idle = self._idle.worker, None
        started = time.monotonic()
        worker = worker or self._workers.start(log, step)
        worker.start_step(record, log)
        later = [one.step for one in self._ready] + [step for _, step in self._waiting]
        time_left = durations.TimeLeft(self._run_plan, later)
        watch = LogWatch(log)
        self._running.append(_RunningStep(number, step, worker, log, watch, started, time_left))

    def _write_record(self, ready: "_ReadyStep", **extra: Any) -> tuple[Path, Path]:
        """What the worker reads, and the log that it writes."""
        step, run_dir = ready.step, self._run_dir
        fingerprint = self._run_plan.fingerprint(step)
        name = "-".join([f"{ready.number:03d}", step.stage, fingerprint, *extra])
        record, log = run_dir / "steps" / f"{name}.json", run_dir / "logs" / f"{name}.log"
        final = self._run_plan.own_folder(step).absolute()
        folder = run_dir.absolute()
        made_by = {"story": str(folder), "early": str(folder / EARLY_FOLDER / fingerprint)}
        command = self._commands.get(fingerprint, self._cfg.command)
        made = _make_record(self._cfg, self._run_plan, step, ready.inputs, final, command)
        if self._workers.runs_side_by_side:
            made["is_on_cluster"] = True  # the node says its device when it builds
        else:
            made["device"] = describe_device()
        write_json(record, {**made, **made_by, **extra})
        log.parent.mkdir(exist_ok=True)
        return record, log

    def _follow_running(self) -> bool:
        """Show what runs. Returns whether a Step has ended."""
        before = len(self._running)
        for running in [*self._running]:
            code = running.worker.poll()
            self._show(running)
            if code is not None:
                self._running.remove(running)
                self._end_early(running)
                self._end(running, code)
        return len(self._running) < before

    def _show(self, running: "_RunningStep") -> None:
        step, fingerprint = running.step, self._run_plan.fingerprint(running.step)

        def show(text: str) -> None:
            line = running.worker.explain_wait() or text + running.time_left.describe()
            self._ledger.show_running(step, fingerprint, line)

        running.watch.poll(show, self._ledger.print_note)

    def _read_made(self, step: Step, code: int) -> store.Manifest | None:
        """What a Step has published: a network file system may show another machine's late."""
        is_late = self._workers.runs_side_by_side and code in (DONE, ALREADY_BUILT)
        deadline = time.monotonic() + (SHOWN_AFTER if is_late else 0.0)
        while (made := store.read_manifest(self._run_plan.folder(step))) is None:
            if time.monotonic() >= deadline:
                return None
            time.sleep(1.0)
        return made

    def _end(self, running: "_RunningStep", code: int) -> None:
        step, fingerprint = running.step, self._run_plan.fingerprint(running.step)
        manifest = self._read_made(step, code)
        if code not in (DONE, ALREADY_BUILT) or manifest is None:
            self._end_worker(running.worker)
            seconds = time.monotonic() - running.started
            note = "waits for a batch" if code == INTERRUPTED else ""
            self._ledger.add_line(FAILED_SIGN, step, fingerprint, seconds=seconds, note=note)
            failure = describe_failure(step, fingerprint, code, running.log)
            if code == INTERRUPTED or not self._stops_at_failure:
                self._pending.append(failure)
                return
            raise StepFailed(failure, USER_ERROR if code == USER_ERROR else FAILED, code)
        key = None if self._workers.runs_side_by_side else self._find_key(step)
        if key:
            self._idle = _IdleWorker(running.worker, key)
        else:
            self._end_worker(running.worker, wait=opens_model(step))
        sign, is_new = ("■", True) if code == DONE else ("✓", False)
        note, seconds = summarize_cost(manifest["cost"]), manifest["seconds"]
        self._ledger.add_line(sign, step, fingerprint, seconds=seconds, note=note, counted=is_new)
        for line in read_summary_lines(running.log):
            self._ledger.print_note(line)
        self._finish(running.number, step, manifest)


@dataclass(frozen=True, eq=False)
class _ReadyStep:
    number: int
    step: Step
    inputs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _RunningStep:
    number: int
    step: Step
    worker: AnyWorker
    log: Path
    watch: LogWatch
    started: float
    time_left: durations.TimeLeft


@dataclass(frozen=True)
class _EarlyScoring:
    """A worker that scores the finished shards of a Step that is sampling."""

    samples: _RunningStep
    worker: AnyWorker


@dataclass(frozen=True)
class _IdleWorker:
    """A worker that has built its Step and keeps its model open."""

    worker: AnyWorker
    key: str


def needs_merging(run_plan: RunPlan, step: Step) -> bool:
    """Whether `train.adapter.save_merged` asks for a copy that does not exist yet."""
    if not isinstance(step.config, TrainConfig):
        return False
    is_asked = getattr(step.config.adapter, "save_merged", False)
    folder = run_plan.folder(step)
    is_ours = folder == run_plan.own_folder(step)  # nothing is written to another store
    return is_asked and is_ours and not (folder / MERGED).exists()


def _make_record(
    cfg: Config, run_plan: RunPlan, step: Step, inputs: Any, final: Path, command: str
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
        "command": f"{command} until={step.stage}" + (f"@{step.label}" if step.label else ""),
        "config": step.config.model_dump(mode="json"),
        "inputs": inputs,
        "others": [str(root.absolute()) for root in run_plan.others],
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
