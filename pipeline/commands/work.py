"""`strop work`: takes shards of a run's steps, from any machine that sees the run and its store.

The run itself works on; what this process finishes is moved into the step by the run. It sees the
GPUs that CUDA_VISIBLE_DEVICES names, and opens one engine: start one process for each. A training
on several machines has no shards; there this machine runs its share of the processes.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import hardware, store
from pipeline.artifacts import find_store
from pipeline.commands.table import describe_usage, parse_words, reports_errors
from pipeline.driver.cluster.needs import JOINABLE
from pipeline.driver.cluster.node import Owner, run_module
from pipeline.driver.worker import import_stage, open_inputs, read_config
from pipeline.errors import DONE, UserError, describe_place, pluralize
from pipeline.hashing import hash_code
from pipeline.resources import leases, machines
from pipeline.resources.shard_queue import JoinedWorker, read_queue

HELPED = (*JOINABLE, "train")
LAUNCH_MODULE = "pipeline.training.launch"
SAME_DEVICE = "auto", "true", "false"
PAUSE = 1.0  # seconds between two looks at the run


@reports_errors
def main(arguments: list[str]) -> int:
    words = parse_words("work", arguments)
    place, wanted = words.place(0), words.knobs["step"]
    patience, same_device = _read_seconds(words.knob("wait")), words.knob("same_device")
    if same_device not in SAME_DEVICE:
        raise UserError(f"same_device={same_device}: expected one of {', '.join(SAME_DEVICE)}.")
    if not place.is_dir():
        raise UserError(
            f"{place}: this machine sees no such folder{describe_place(place)}. Give that of a run."
        )
    if wanted is not None and wanted.partition("@")[0] not in HELPED:
        raise UserError(
            f"step={wanted}: its work is not in shards. Expected one of {', '.join(HELPED)}."
        )
    finished, waited_since = 0, time.monotonic()
    while time.monotonic() - waited_since < patience:
        run_dir = find_run(place)
        for step, work in list_open_steps(run_dir, wanted) if run_dir else ():
            if taken := work_on_step(step, work, same_device):
                finished, waited_since = finished + taken, time.monotonic()
        time.sleep(PAUSE)
    if find_run(place) is None:
        raise UserError(
            f"{place}: not a run that this machine sees: it has no {store.PLAN}.\n"
            "  Give the folder of a run, on a disk that both machines have at the same path."
        )
    print(f"{pluralize(finished, 'piece')} of work finished; no step was open for {patience:g} s")
    return DONE


def find_run(place: Path) -> Path | None:
    """A run, or now the newest of a recipe's folder of runs and of a sweep's points in it."""
    if (place / store.PLAN).is_file():
        return place.resolve()
    plans = [*place.glob(f"*/{store.PLAN}"), *place.glob(f"*/*/{store.PLAN}")]
    newest = max(plans, key=lambda file: file.stat().st_mtime, default=None)
    return newest.parent if newest else None


def _read_seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(
            f"wait={text}: expected whole seconds, such as 60.\n  {describe_usage('work')}"
        )
    return float(text)


def list_open_steps(run_dir: Path, wanted: str | None) -> Iterator[tuple[dict[str, Any], Path]]:
    """The steps of a run that can be helped now: their records, and where they are made."""
    for file in sorted((run_dir / "steps").glob("*.json")):
        step: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            step = json.loads(file.read_text())
        stage, _, fingerprint = (wanted or "").partition("@")
        if step.get("stage") not in ((stage,) if stage else HELPED) or step.get("early_only"):
            continue
        if fingerprint not in ("", step["fingerprint"]):
            continue
        for folder in (Path(step["out"]), *(Path(one["path"]) for one in step["inputs"].values())):
            _check_store(find_store(folder))
        work = store.find_work_folder(Path(step["out"]))
        if read_queue(work) or machines.find_invitation(work):
            yield step, work


def _check_store(root: Path) -> None:
    if not root.is_dir():
        raise UserError(
            f"{root}: this machine does not see this store of the run.\n"
            "  Mount it at the same path as on the machine of the run."
        )


def work_on_step(step: dict[str, Any], work: Path, same_device: str = "auto") -> int:
    """Take shards until none is free, or train along. Returns how many of these were finished."""
    if not leases.is_held(store.lease_folder(Path(step["out"]))):
        return 0  # its run has ended, and will begin anew
    try:
        if queue := read_queue(work):
            return _take_shards(step, work, queue, same_device)
        if invitation := machines.find_invitation(work):
            return _train_along(step, work, invitation, same_device)
    except OSError:
        if read_queue(work) or machines.find_invitation(work):
            raise
    return 0  # the step was published, or its run was stopped and began anew


def _take_shards(step: dict[str, Any], work: Path, queue: dict[str, Any], same_device: str) -> int:
    worker = JoinedWorker(work, queue["shards"])
    try:
        _check_machine(work, queue["code"], same_device)
        if not worker.sees_free_shard():
            return 0
        _print_joined(step)
        stage, inputs = import_stage(step), open_inputs(step["inputs"])
        knob = {"knob": step["knob"]} if step["stage"] != "reference" else {}
        stage.join(read_config(step), work, worker, **knob, **inputs)
    finally:
        worker.close()
    return worker.finished


def _train_along(
    step: dict[str, Any], work: Path, invitation: machines.Invitation, same_device: str
) -> int:
    _check_machine(work, invitation.code, same_device)
    if 0 < len(hardware.list_gpus()) < invitation.processes:
        _print_once(
            f"{step['stage']} asks each machine for {pluralize(invitation.processes, 'GPU')},"
            f" and this process sees {len(hardware.list_gpus())}: it waits for other steps"
        )
        return 0
    first = Owner(store.lease_folder(Path(step["out"])))

    def is_going_on() -> bool:
        return invitation.is_open() and first.is_alive()

    def launch(order: Path, number: int) -> int:
        _print_joined(step)
        words = [LAUNCH_MODULE, str(order), str(number)]
        return run_module(words, Path.cwd(), os.environ, has_owner=is_going_on)

    return int(machines.join(invitation, launch, is_going_on))


@cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_joined(step: dict[str, Any]) -> None:
    print(f"joined {step['stage']} {step['label'] or ''}".rstrip(), file=sys.stderr, flush=True)


def _check_machine(work: Path, code: str, same_device: str) -> None:
    check_same_code(code, work)
    # The run's record of it has no device where a cluster builds it.
    check_same_device(json.loads((work / store.STEP).read_text()), same_device)


def check_same_code(code: str, work: Path) -> None:
    if code != hash_code():
        raise UserError(
            f"{work}: its run has another version of this software ({code}; here"
            f" {hash_code()}).\n"
            "  Install the same version on both machines."
        )


def check_same_device(step: dict[str, Any], same: str = "auto") -> None:
    """Bytes are promised on CPUs of one kind, and a GPU computes other ones than any CPU.

    `same`: `auto` lets GPUs of several kinds work together, since they promise no bytes.
    """
    here, theirs = map(hardware.name_kind, (hardware.describe_device(), step["device"]))
    both_have_gpus = bool(hardware.list_gpus()) and theirs != step["device"]
    may_differ = same == "false" or (same == "auto" and both_have_gpus)
    if here == theirs or may_differ:
        return
    raise UserError(
        f"{step['stage']}: its run is on {theirs}, and this machine is {here}: the last digits of"
        " their results differ.\n"
        "  Join from a machine of the same kind; or give same_device=false, and the step records"
        " who made which shard."
    )
