"""Why a run did not finish, in lines for the user: its error, the likely cause, what to type.

A fault that our own code found says by itself what to type. The table `CAUSES` is for the others:
what libraries and the system leave in a step's log.
"""

import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import read_object
from pipeline.config.training import name_adapter_mount
from pipeline.driver.run_record import RunState
from pipeline.errors import make_printable
from pipeline.progress import SIGN, read_faults, read_lines

LAST_BYTES = 200_000  # of a log, where its end tells why
MAX_ERROR = 3  # lines of the error that are shown
MAX_LINE = 240  # characters
MEMORY_STEPS = (
    "train",
    "sft",
    "reward",
    "sample",
    "revise",
    "steps",
    "reference",
    "score",
    "duel",
    "benchmark",
)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """What a log shows, what it means, and what to type for this step."""

    pattern: str
    meaning: str
    advise: Callable[[Record], str]


def explain_failure(state: RunState) -> list[str]:
    """The error, the cause if it is known, the log, and the command that resumes."""
    record = read_object(state.broken.record) if state.broken else {}
    log = read_log(state.broken.log) if state.broken else ""
    lines = [*describe_error(state, log), *describe_cause(state, record, log)]
    if state.broken and state.broken.log.is_file():
        lines.append(f"Log: {state.broken.log}")
    if command := read_command(state.run_dir):
        lines.append(f"To resume, type: {follow_move(command, state.run_dir)}")
    return lines


def read_log(log: Path) -> str:
    """Its end. A step that was never started has none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        return file.read().decode(errors="replace")


def read_command(run_dir: Path) -> str:
    """The first line of its config, which repeats the run."""
    config = run_dir / "config.yaml"
    if not config.is_file():
        return ""
    first = config.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# ") else ""


def follow_move(command: str, run_dir: Path) -> str:
    """The command with the folders of now, where a run was moved with what is around it."""
    head, _, rest = command.partition(" && ")
    words = shlex.split(rest)
    recorded = [word.removeprefix("runs=") for word in words if word.startswith("runs=")]
    if not recorded:
        return command
    old = Path(recorded[-1])
    new = next((path for path in run_dir.resolve().parents if path.name == old.name), old)
    while old != new and old.name == new.name:
        old, new = old.parent, new.parent
    if old == new:
        return command

    def move(word: str) -> str:
        key, equals, value = ("", "", word) if word.startswith("/") else word.partition("=")
        if value.startswith("[") and value.endswith("]"):  # store=[mine,team]
            return f"{key}{equals}[{','.join(map(move, value[1:-1].split(',')))}]"
        was = Path(value)
        if not was.is_relative_to(old) or was.exists():
            return word
        now = new / was.relative_to(old)
        return f"{key}{equals}{now}" if now.exists() else word

    typed = [shlex.join(map(move, shlex.split(head))), shlex.join(map(move, words))]
    return " && ".join(typed)


def describe_error(state: RunState, log: str) -> Iterator[str]:
    """The faults that our own code named, or else the last line of a traceback."""
    if faults := read_faults(log.splitlines()):
        yield from _shorten_lines(faults)
    elif error := find_exception(log):
        yield f"Error: {error}"
    elif state.end and state.status == "failed":
        yield from _shorten_lines(state.end.message)
    elif state.end and state.end.message:
        yield make_printable(state.end.message, MAX_LINE)
    elif progress := read_lines(log.splitlines(), SIGN):
        yield f"Its last line of progress: {make_printable(progress[-1], MAX_LINE)}"


def _shorten_lines(text: str) -> Iterator[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines[:MAX_ERROR]):
        yield ("Error: " if number == 0 else "  ") + make_printable(line.strip(), MAX_LINE)


EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE)


def find_exception(log: str) -> str:
    """The last line that names an exception, which is what a traceback ends with."""
    found = EXCEPTION.findall(log)
    return make_printable(found[-1], MAX_LINE) if found else ""


def describe_cause(state: RunState, record: Record, log: str) -> Iterator[str]:
    """Nothing where the error already says what to type, in its indented lines."""
    faults = read_faults(log.splitlines())
    if "\n  " in faults or (state.end and state.end.worker_exit is None and state.end.message):
        return
    exit_code = state.end.worker_exit if state.end else None
    seen = f"{log}\nexit code {exit_code}" if exit_code is not None else log
    for cause in CAUSES:
        if re.search(cause.pattern, seen):
            yield f"Cause: {cause.meaning}."
            yield f"Try: {cause.advise(record)}."
            return
    if find_exception(log):
        yield "Cause: not one that is known here; the log has the traceback above that line."
    elif state.end is None and record.get("stage") in MEMORY_STEPS:
        yield (
            "Cause: the run ended without a word: killed from outside, a closed terminal, a"
            " restart, or memory (dmesg shows an out-of-memory kill)."
        )
        yield f"Try: the same command. If memory ran out: {advise_memory(record)}."


# ── what to type ─────────────────────────────────────────────────────────────────────────────────


def advise_memory(record: Record) -> str:
    """What lowers the memory of this step, with what it has now."""
    if not record:
        return "close other programs on this machine"
    knobs = [*_list_memory_knobs(record), *_list_dtypes(record)]
    return ", or ".join(knobs) if knobs else "fewer prompts, or a machine with more memory"


def _list_memory_knobs(record: Record) -> Iterator[str]:
    knob, config = record["knob"], record["config"]
    match record["stage"]:
        case "train" | "sft" | "reward":
            yield from _list_training_knobs(knob, config)
        case "sample" | "revise":
            yield from _list_sampling_knobs(f"{knob}.backend", config["backend"])
            yield from _halve(f"{knob}.runtime", config["runtime"], "workers")
        case "reference":
            yield from _halve(f"{knob}.runtime", config["runtime"], "batch_tokens")
        case "score":
            for name, scorer in config.get("scorers", {}).items():
                place, engine = f"{knob}.scorers.{name}", scorer.get("engine")
                yield from _halve(f"{place}.runtime", scorer.get("runtime", {}), "batch_tokens")
                if isinstance(engine, dict):
                    yield from _list_sampling_knobs(f"{place}.engine", engine)
        case "duel":
            yield from _list_sampling_knobs(f"{knob}.engine", config["engine"])


def _list_training_knobs(knob: str, config: Record) -> Iterator[str]:
    micro_batch = config["runtime"].get("micro_batch")
    if micro_batch == "auto":
        yield f"{knob}.runtime.micro_batch=1 (now auto)"
    yield from _halve(f"{knob}.runtime", config["runtime"], "micro_batch")
    if config.get("gradient_checkpointing") is False:
        yield f"{knob}.gradient_checkpointing=true"
    if config.get("adapter", {}).get("kind") == "full":
        yield f"{name_adapter_mount(knob)}=lora"


def _list_sampling_knobs(place: str, backend: Record) -> Iterator[str]:
    runtime = backend.get("runtime", {})
    for name in ("batch", "max_sequences"):
        yield from _halve(f"{place}.runtime", runtime, name)
    if isinstance(memory := runtime.get("memory"), float):
        yield f"{place}.runtime.memory below {memory:g} where other programs share the GPU"


def _halve(place: str, runtime: Record, name: str) -> Iterator[str]:
    now, knob = runtime.get(name), f"{place}.{name}"
    if isinstance(now, int) and now > 1:
        yield f"{knob}={now // 2} (now {now})"


def _list_dtypes(record: Record) -> Iterator[str]:
    if '"float32"' in str(record["config"]).replace("'", '"'):
        yield "dtype=bfloat16 (now float32) where the device computes in it"


def advise_cache(record: Record) -> str:
    place = f"{record['knob']}.backend.runtime"
    return (
        f"{place}.cpu_cache_gib higher on a CPU, {place}.memory higher on a GPU, or shorter texts"
        " (limits.completion, limits.prompt)"
    )


def advise_dtype(record: Record) -> str:
    return "dtype=float32, which every device computes in"


def advise_disk(record: Record) -> str:
    return "free space (strop store --prune), or another disk (store=FOLDER, runs=FOLDER)"


def advise_server(record: Record) -> str:
    return (
        "start the server and check the address (runtime.base_url); if it is overloaded, lower"
        " runtime.concurrency or raise runtime.timeout. Finished replies are kept"
    )


def advise_hub(record: Record) -> str:
    place = record.get("place")
    what = f" ({place})" if isinstance(place, str) else ""
    return f"connect to the network once, or give a local folder instead of the hub's name{what}"


def advise_processes(record: Record) -> str:
    return (
        "the same command: training resumes from its last checkpoint. If it happens again,"
        f" {record.get('knob', 'train')}.runtime.processes=1 shows whether one process works"
    )


def advise_driver(record: Record) -> str:
    return "nvidia-smi to see whether the GPU answers; then make install, which chooses the build"


def advise_install(record: Record) -> str:
    return "make install, which installs what this machine needs"


def advise_memory_of_machine(record: Record) -> str:
    return f"{advise_memory(record)}. dmesg shows whether the system killed it for memory"


CAUSES = (
    Cause(
        r"OutOfMemoryError|CUDA out of memory|HIP out of memory",
        "the GPU's memory was full",
        advise_memory,
    ),
    Cause(
        rf"exit code -{signal.SIGKILL:d}\b|exitcode\s*:\s*-9|Signal 9 \(SIGKILL\)"
        r"|DefaultCPUAllocator: can't allocate memory|\bMemoryError\b|Cannot allocate memory",
        "the machine's memory was full, or somebody killed the process",
        advise_memory_of_machine,
    ),
    Cause(
        r"No available memory for the cache blocks|KV cache (?:is )?(?:needed|required)"
        r"|larger than the (?:available|maximum number of tokens).*KV cache",
        "vLLM has no memory left for running completions",
        advise_cache,
    ),
    Cause(
        r"Free memory on device .* less than desired GPU memory utilization",
        "other programs hold the GPU's memory",
        advise_memory,
    ),
    Cause(r"No space left on device|Disk quota exceeded", "the disk is full", advise_disk),
    Cause(
        r"not implemented for '(?:Half|BFloat16)'|must have the same dtype|expected scalar type",
        "this device cannot compute in the chosen dtype",
        advise_dtype,
    ),
    Cause(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to 'https://huggingface",
        "the hub could not be reached",
        advise_hub,
    ),
    Cause(
        r"Connection refused|APIConnectionError|ConnectError|Read timed out|RateLimitError",
        "a server could not be reached, or did not answer in time",
        advise_server,
    ),
    Cause(
        r"NCCL error|DistBackendError|TCPStore|ProcessGroup.*(?:timeout|timed out)",
        "the processes of a training lost each other",
        advise_processes,
    ),
    Cause(
        r"CUDA error|CUDA driver version is insufficient|no kernel image is available",
        "the GPU or its driver failed",
        advise_driver,
    ),
    Cause(r"ModuleNotFoundError: No module named", "a package is missing", advise_install),
    Cause(
        rf"exit code -{signal.SIGSEGV:d}\b|exit code -{signal.SIGBUS:d}\b|exit code -"
        rf"{signal.SIGILL:d}\b",
        "a library crashed",
        advise_install,
    ),
)
