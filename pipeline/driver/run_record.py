"""How a run went, read from its folder: run.json, its ledger, the lease of one that is running.

`record_run` writes run.json at both ends of a run. A folder without its end belongs to a run that
was killed, or to one of an earlier version, whose state follows from its report and its ledger.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import store
from pipeline.artifacts import read_json, read_object, write_json
from pipeline.driver.ledger import FAILED_SIGN, LEDGER
from pipeline.errors import DONE, INTERRUPTED, UserError
from pipeline.resources import leases

RECORD, LEASE = "run.json", ".lease"
PAGES = ("report.html", "sweep.html")  # what a run or a sweep ends with
TIME = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-(\d\d)")
STEP_RECORD = re.compile(r"(?P<number>\d+)-(?P<stage>[a-z]+)-(?P<fingerprint>[0-9a-f]+)")

Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class RunEnd:
    """The exit code, what the user read, and how the worker of a failed step ended."""

    code: int
    message: str = ""
    worker_exit: int | None = None


@dataclass(frozen=True)
class BrokenStep:
    """The step that a run was building when it ended. `number` counts from 1."""

    number: int
    stage: str
    label: int | str
    record: Path
    log: Path

    @property
    def name(self) -> str:
        """`train round 1`, `sample test sft`, `sft`."""
        is_round = isinstance(self.label, int) and self.label
        label = f"round {self.label}" if is_round else str(self.label or "")
        return f"{self.stage} {label}".rstrip()


@dataclass(frozen=True)
class RunState:
    run_dir: Path
    status: Status
    started: str
    ledger: list[dict[str, Any]]
    steps: int | None  # in the plan; None for a run of an earlier version
    end: RunEnd | None
    broken: BrokenStep | None


@contextmanager
def record_run(
    run_dir: Path, steps: int, explain: Callable[[BaseException], RunEnd]
) -> Iterator[None]:
    """Hold the run's lease, which shows that it is running, and write how it started and ended."""
    record = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "steps": steps}
    with leases.hold(run_dir / LEASE):
        write_json(run_dir / RECORD, record)
        try:
            yield
        except BaseException as error:
            _write_end(run_dir, record, explain(error))
            raise
        _write_end(run_dir, record, RunEnd(DONE))


def _write_end(run_dir: Path, record: dict[str, Any], end: RunEnd) -> None:
    with suppress(OSError):  # a full disk must not hide how the run ended
        write_json(run_dir / RECORD, {**record, **asdict(end)})


def read_state(run_dir: Path) -> RunState:
    """Refuses a folder that is not a run's, and damaged records."""
    record, ledger = _read_record(run_dir), _read_ledger(run_dir)
    end = (
        RunEnd(record["code"], record["message"], record.get("worker_exit"))
        if "code" in record
        else None
    )
    status = _find_status(run_dir, end, ledger)
    return RunState(
        run_dir,
        status,
        record.get("started") or find_start(run_dir),
        ledger,
        record.get("steps"),
        end,
        None if status == "finished" else _find_broken_step(run_dir, ledger),
    )


def _read_record(run_dir: Path) -> dict[str, Any]:
    file = run_dir / RECORD
    if not file.is_file():
        return {}
    record = read_object(file, started=str, steps=int)
    return read_object(file, code=int, message=str) if "code" in record else record


def _read_ledger(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / LEDGER
    lines = read_json(file) if file.is_file() else []
    if not isinstance(lines, list) or not all(map(_is_ledger_line, lines)):
        raise UserError(
            f"{file}: not a run's ledger.\n"
            "  Type the run's command again (the first line of its config.yaml): a new run folder"
            " has a new one, and what is built is kept."
        )
    return lines


def _is_ledger_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and all(isinstance(line.get(name), str) for name in ("sign", "stage", "fingerprint"))
        and isinstance(line.get("seconds", ""), int | float | None)
    )


def _find_status(run_dir: Path, end: RunEnd | None, ledger: list[dict[str, Any]]) -> Status:
    if is_running(run_dir):
        return "running"
    if end:
        return {DONE: "finished", INTERRUPTED: "interrupted"}.get(end.code, "failed")  # type: ignore[return-value]
    if any((run_dir / page).is_file() for page in PAGES):
        return "finished"
    has_failed = any(line["sign"] == FAILED_SIGN for line in ledger)
    return "failed" if has_failed else "interrupted"


def is_running(run_dir: Path) -> bool:
    """Whether a process that lives holds the lease, here or on another machine."""
    return leases.is_held(run_dir / LEASE)


def _find_broken_step(run_dir: Path, ledger: list[dict[str, Any]]) -> BrokenStep | None:
    """The last step with a record that the ledger shows as failed, or else not as built."""
    built = {line["fingerprint"] for line in ledger if line["sign"] != FAILED_SIGN}
    failed = {line["fingerprint"] for line in ledger} - built
    started = [
        (name["fingerprint"] in failed, record, name)
        for record in sorted((run_dir / "steps").glob("*.json"))
        if (name := STEP_RECORD.fullmatch(record.stem)) and name["fingerprint"] not in built
    ]
    if not started:
        return None
    _, record, name = max(started, key=lambda one: one[:2])
    label = read_object(record, stage=str, knob=str, config=dict).get("label", "")
    log = run_dir / "logs" / f"{record.stem}.log"
    return BrokenStep(int(name["number"]) + 1, name["stage"], label, record, log)


def find_start(run_dir: Path) -> str:
    """By the name of its folder, or of its sweep's, or else by the age of its plan."""
    for name in (run_dir.name, run_dir.parent.name):
        if match := TIME.match(name):
            return f"{match[1]} {match[2]}:{match[3]}:{match[4]}"
    plan = run_dir / store.PLAN
    age = time.localtime(plan.stat().st_mtime) if plan.is_file() else time.localtime(0)
    return time.strftime("%Y-%m-%d %H:%M:%S", age)


def sum_seconds(ledger: Iterable[dict[str, Any]]) -> float:
    """What the steps took, each counted once, those that earlier runs built included."""
    seconds = {line["fingerprint"]: line["seconds"] or 0.0 for line in ledger}
    return sum(seconds.values())
