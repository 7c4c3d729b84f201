"""Steps as Slurm jobs: files in the run's folder, submitted, watched with squeue, ended by scancel.

A job leaves its exit code in a file. While it is in the queue or runs, and also while Slurm queues
it again, there is none. sacct is not asked: many clusters keep no accounts.
"""

import math
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_text
from pipeline.config import SlurmCluster
from pipeline.driver.cluster import sbatch
from pipeline.driver.cluster.launcher import ClusterTask
from pipeline.driver.cluster.needs import Needs
from pipeline.driver.cluster.node import RESTARTS
from pipeline.errors import UserError
from pipeline.resources import leases

JOBS = "cluster"  # in the run's folder
LEASE = "cluster.lease"
PAUSE = 2.0  # seconds between two looks at the queue
# Seconds without a job and without an exit code: a network file system may show the file late.
LOST_AFTER = 60.0
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
JOB_MODULE = "pipeline.driver.cluster.slurm_job"
ADVICE = "The job's file is in the run's folder. Change the knobs of cluster and run it again."


def connect(cfg: SlurmCluster) -> "Slurm":
    if shutil.which("sbatch") is None:
        raise UserError(
            "cluster=slurm: no sbatch here, so this machine submits no Slurm jobs.\n"
            "  Type this on the cluster's login machine, or give cluster=local."
        )
    listed = _ask("sinfo", "--noheader", "--format=%R|%D|%c|%m|%G|%l")
    if listed.returncode:
        raise UserError(
            f"cluster=slurm: Slurm does not answer ({listed.stderr.strip()}).\n"
            "  Type `sinfo` until it does, or give cluster=local."
        )
    nodes = [line.split("|") for line in listed.stdout.split()]
    known = sorted({row[0] for row in nodes})
    if cfg.partition is not None and not {*cfg.partition.split(",")} <= {*known}:
        raise UserError(
            f"cluster.partition={cfg.partition}: Slurm has no such partition.\n"
            f"  Give one of {', '.join(known)}."
        )
    return Slurm(cfg, [row for row in nodes if cfg.partition in (None, *row[:1])])


def _ask(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True)


class Slurm:
    def __init__(self, cfg: SlurmCluster, nodes: list[list[str]]):
        self._cfg, self._nodes = cfg, nodes
        self.has_gpus = any(re.search(r"(^|,)gpu\b", row[4]) for row in nodes)
        self._states: dict[str, tuple[str, str]] = {}  # of each job: its state, and why it waits
        self._looked_at = 0.0
        self._started: list[SlurmJob] = []
        self._held: dict[Path, leases.Lease] = {}
        self._heart = leases.Heart(lambda lease: None)

    def describe(self) -> str:
        kinds = [f"{row[1]} × {row[2]} cores, {row[3]} MB, {row[4]}" for row in self._nodes]
        return f"Slurm: {'; '.join(dict.fromkeys(kinds))}"

    def explain_misfit(self, needs: Needs, machines: int) -> str | None:
        limits = [_parse_hours(row[5]) for row in self._nodes]
        if needs.hours and limits and needs.hours > max(limits):
            return f"Slurm allows {max(limits):g} hours"
        options = [f"--nodes={machines}", f"--ntasks={machines}", *self._format_options(needs)]
        asked = _ask("sbatch", "--test-only", *options, "--wrap=true")
        return f"Slurm refuses it ({_shorten(asked.stderr)})" if asked.returncode else None

    def _list_options(self, needs: Needs) -> dict[str, Any]:
        return {
            "--gpus-per-node": needs.gpus or None,
            "--cpus-per-task": needs.cpus,
            "--mem": needs.memory and f"{math.ceil(needs.memory * 1024)}M",
            "--time": needs.hours and math.ceil(needs.hours * 60),
            "--partition": self._cfg.partition,
            "--account": self._cfg.account,
            "--constraint": self._cfg.constraint,
        }

    def _format_options(self, needs: Needs) -> list[str]:
        return [f"{name}={value}" for name, value in self._list_options(needs).items() if value]

    def check_nodes(self, folders: list[Path], files: list[Path]) -> None:
        """By a node that is free now. Where none is, each job looks at its own record first."""
        probes = [folder / f".seen-{secrets.token_hex(4)}" for folder in folders]
        options = self._format_options(Needs(0, 1, None, 1 / 60))
        test = "; ".join(
            f"[ -e {shlex.quote(str(path))} ] || echo missing {shlex.quote(str(path.parent))}"
            for path in [*probes, *files, Path(sys.executable)]
        )
        try:
            for probe in probes:
                probe.touch()
            command = ["srun", "--immediate=10", "--ntasks=1", "--chdir=/", *options]
            asked = _ask(*command, "sh", "-c", f"{test}; echo on $(hostname)")
        finally:
            for probe in probes:
                probe.unlink(missing_ok=True)
        if asked.returncode == 0 and (unseen := re.findall("^missing (.*)$", asked.stdout, re.M)):
            [node] = re.findall("^on (.*)$", asked.stdout, re.M)[:1]
            raise UserError(
                f"cluster=slurm: node {node} does not see {unseen[0]}.\n"
                "  Give folders on a disk that all nodes see, at the same path:"
                " store=FOLDER runs=FOLDER, and an environment of Python there."
            )

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────

    def start(self, task: ClusterTask) -> "SlurmJob":
        lease = self._hold_lease(task.run_dir)
        folder = task.run_dir / JOBS
        folder.mkdir(exist_ok=True)
        file, code = folder / f"{task.name}.sbatch", folder / f"{task.name}.exit"
        code.unlink(missing_ok=True)
        write_text(file, self._render(task, lease, code))
        array = [] if task.count is None else [f"--array=1-{task.count}"]
        number = sbatch.submit([*array, str(file)], ADVICE)
        job = SlurmJob(self, number, code, task.log)
        self._started.append(job)
        self._states[number] = "PENDING", "submitted"
        return job

    def _hold_lease(self, run_dir: Path) -> Path:
        """By it the jobs see whether their run lives."""
        folder = run_dir / LEASE
        if folder not in self._held and (lease := leases.Observer().try_acquire(folder)):
            self._held[folder] = lease
            self._heart.add(lease)
        return folder

    def _render(self, task: ClusterTask, lease: Path, code: Path) -> str:
        words = [sys.executable, "-m", JOB_MODULE, str(lease), *task.words]
        output = task.log if task.count is None else task.log.with_suffix(".%a.log")
        options = self._list_options(task.needs)
        head = sbatch.render_head(task.name, str(output), options, task.machines)
        variables = {name: str(value) for name, value in self._cfg.env.items()}
        if not task.needs.gpus:
            variables = {"CUDA_VISIBLE_DEVICES": "", **variables}
        exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        prolog = "\n".join([*exports, *(self._cfg.prolog or "").rstrip().splitlines(), ""])
        scratch, final = shlex.quote(f"{code}.tmp"), shlex.quote(str(code))
        otherwise = f"*) echo $code > {scratch} && mv {scratch} {final} ;;"
        if task.count is not None:
            otherwise = (
                f'"RUNNING "[!0]*) [ "${{SLURM_RESTART_COUNT:-0}}" -ge {RESTARTS} ] ||'
                ' scontrol requeue "$SLURM_JOB_ID" ;;'
            )
        partners = f"{self._render_partners(task, lease)} &\n" if task.machines > 1 else ""
        body = sbatch.render_requeued(shlex.join(words), otherwise)
        return f"{head}{sbatch.REQUEUE_HEAD}\n{prolog}{partners}{body}"

    def _render_partners(self, task: ClusterTask, lease: Path) -> str:
        """What runs on the nodes after the first. Slurm ends it with the job."""
        others = task.machines - 1
        return shlex.join(
            [
                "srun",
                "--relative=1",
                f"--nodes={others}",
                f"--ntasks={others}",
                f"--cpus-per-task={task.needs.cpus}",  # srun does not take the job's own
                f"--output={task.log.with_name(f'{task.name}-partner')}.%t.log",
                *[sys.executable, "-m", JOB_MODULE, str(lease), *task.partner_words],
            ]
        )

    def read_states(self, may_be_old: bool = True) -> dict[str, tuple[str, str]]:
        """Of every job of ours that Slurm still knows. Where it does not answer: as it was."""
        if may_be_old and time.monotonic() - self._looked_at < PAUSE:
            return self._states
        self._looked_at = time.monotonic()
        listed = _ask("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%r")
        if listed.returncode == 0:
            rows = [line.split("|") for line in listed.stdout.splitlines()]
            rows.sort(key=lambda row: row[1] not in ENDED)  # of an array: the elements that run
            self._states = {row[0].partition("_")[0]: (row[1], row[2]) for row in rows}
        return self._states

    def is_known(self, number: str, may_be_old: bool = True) -> bool:
        state = self.read_states(may_be_old).get(number, ("gone", ""))[0]
        return state not in ("gone", *ENDED)

    def wait_for_stopped(self) -> None:
        deadline = time.monotonic() + LOST_AFTER
        stopped = [job.number for job in self._started if job.is_stopped]
        while any(self.is_known(number) for number in stopped) and time.monotonic() < deadline:
            time.sleep(PAUSE)
        self._started = []


class SlurmJob:
    def __init__(self, slurm: Slurm, number: str, code: Path, log: Path):
        self._slurm, self.number, self._code, self._log = slurm, number, code, log
        self._known_at = time.monotonic()
        self.is_stopped = False

    def poll(self) -> int | None:
        with suppress(OSError, ValueError):
            code = int(self._code.read_text())
            return code if code <= 128 else 128 - code
        if self._slurm.is_known(self.number):
            self._known_at = time.monotonic()
        if time.monotonic() - self._known_at < LOST_AFTER:
            return None
        state, _ = self._slurm.read_states().get(self.number, ("gone", ""))
        with self._log.open("a") as log:
            log.write(
                f"Slurm's job {self.number} has ended ({state}) and left no exit code."
                f" Does its node see {self._code.parent}?\n"
            )
        return -signal.SIGKILL

    def explain_wait(self) -> str | None:
        state, reason = self._slurm.read_states().get(self.number, ("", ""))
        if state in ("PENDING", "REQUEUED", "CONFIGURING"):
            return f"{state.lower()} in the queue ({reason})"
        return None

    def stop(self) -> None:
        if not self.is_stopped:
            self.is_stopped = True
            _ask("scancel", self.number)


def _parse_hours(limit: str) -> float:
    """`7-00:00:00`, `8:00:00`, `30:00` or `infinite`."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+)*", limit):
        return math.inf
    days, _, clock = limit.rpartition("-")
    seconds = sum(int(part) * 60**at for at, part in enumerate(reversed(clock.split(":"))))
    return int(days or 0) * 24 + seconds / 3600


def _shorten(text: str) -> str:
    """Slurm's own reason, of its last line."""
    last = (text.strip().splitlines() or ["no reason given"])[-1]
    return last.removeprefix("allocation failure: ").removeprefix("sbatch: error: ")
