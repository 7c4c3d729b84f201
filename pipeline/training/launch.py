"""Start a training: in this process on one visible device, or in several under a launcher.

Call this before CUDA is initialised. Each of several processes runs `training/rank.py`. With
several machines the stage runs on the first one, and each of the others joins it by `strop work`,
which runs `python -m pipeline.training.launch ORDER MACHINE` there.
"""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hardware
from pipeline.artifacts import Artifact, write_json
from pipeline.config import OnlineTraining, TrainConfig
from pipeline.errors import StageError, UserError, pluralize
from pipeline.resources import machines
from pipeline.training.micro_batch import OutOfMemory

if TYPE_CHECKING:
    import polars as pl

FAULTS = "fault-*.json"  # in scratch: a process's own error, by rank
SHOWN_AFTER = 60.0  # seconds
NO_MEMORY = "no-memory"  # in scratch: some process ran out of device memory
RANK_MODULE = "pipeline.training.rank"
# By these a launcher tells a process its place among others.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
TRL_NAMES = {"ddp": "multi_gpu"}  # TRL's names of launch configs, where they differ from ours


def expose_one_device() -> None:
    """Show only the first visible GPU: with several a process uses DataParallel, and TRL refuses.

    Forget ranks that a cluster may have set: this process would train on its share of the batch.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)
    visible = os.environ.get(hardware.VISIBLE)
    if (visible is None and hardware.list_gpus()) or (visible and "," in visible):
        os.environ[hardware.VISIBLE] = (visible or "0").split(",")[0]
    silence_libraries()


def silence_libraries() -> None:
    # Experimental parts of TRL may change: the locks pin it, and tests hold what is used of it.
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports every training to its makers


def count_processes(cfg: TrainConfig) -> int:
    """How many processes train on this machine. Raise where it cannot run that many."""
    from pipeline.resources.gpu_sets import visible_gpus

    gpus = len(visible_gpus())
    if fault := cfg.explain_misfit(gpus):
        raise UserError(fault)
    return cfg.runtime.count_processes(gpus)


def train_in_process(
    cfg: TrainConfig,
    out: Path,
    inputs: dict[str, Any],
    rows: "dict[str, pl.DataFrame]",
) -> None:
    """Train here. Where memory runs out, free what this attempt held before the next one starts."""
    import torch

    from pipeline.training import session

    try:
        return session.train(cfg, out, rows=rows, **inputs)
    except torch.OutOfMemoryError as error:
        message = str(error)
    gc.collect()
    torch.cuda.empty_cache()
    raise OutOfMemory(message)


def train_in_ranks(
    cfg: TrainConfig, count: int, out: Path, inputs: Mapping[str, Artifact | None]
) -> None:
    """Start `count` processes on this machine and wait. Raise the error that one recorded.

    With several machines the same number starts on each, once all of them have joined.
    """
    scratch = out / "scratch"
    no_memory = scratch / NO_MEMORY
    for old in (*scratch.glob(FAULTS), no_memory):
        old.unlink(missing_ok=True)
    paths = {name: str(one.path.absolute()) if one else None for name, one in inputs.items()}
    call = {"knob": cfg.knob, "out": str(out.absolute()), "processes": count, **paths}
    if cfg.runtime.machines == 1:
        code = _start_first(cfg, scratch / machines.ORDER, call)
    else:
        with machines.invite(out, cfg.runtime.machines, count) as attempt:
            code = _start_first(meet(cfg), scratch / machines.ORDER, {**call, "attempt": attempt})
        if code:
            _wait_for_reports(scratch)
    if faults := sorted(scratch.glob(FAULTS)):
        fault: dict[str, Any] = json.loads(faults[0].read_text())
        raise (UserError if fault["user_error"] else StageError)(fault["text"])
    if no_memory.exists():
        raise OutOfMemory
    if code:
        raise StageError(
            f"train: {pluralize(count, 'process')} under {cfg.runtime.launch} ended with exit code "
            f"{code}; their messages are in the log."
        )


def _wait_for_reports(scratch: Path) -> None:
    """A network file system may show late why another machine's process ended."""
    deadline = time.monotonic() + SHOWN_AFTER
    while time.monotonic() < deadline:
        if [*scratch.glob(FAULTS)] or (scratch / NO_MEMORY).exists():
            return
        time.sleep(1.0)


def meet(cfg: TrainConfig) -> TrainConfig:
    """With an address and a port of this machine where none are given."""
    runtime = cfg.runtime
    place = {
        "address": runtime.address or socket.gethostname(),
        "port": runtime.port or find_free_port(),
    }
    return cfg.model_copy(update={"runtime": runtime.model_copy(update=place)})


def find_free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def _start_first(cfg: TrainConfig, order: Path, call: dict[str, Any]) -> int:
    write_json(order, {"config": cfg.model_dump(mode="json"), **call})
    return _run_launcher(cfg, call["processes"], order, machine=0)


def join_training(order: Path, machine: int) -> int:
    """Run this machine's processes of a training. Returns the exit code of their launcher."""
    call = json.loads(order.read_text())
    return _run_launcher(read_config(call), call["processes"], order, machine)


def read_config(order: dict[str, Any]) -> TrainConfig | OnlineTraining:
    """The config of an order, as the stage had it."""
    config = order["config"]
    shape = OnlineTraining if "reward" in config else TrainConfig
    return shape(**config).mounted_at(order["knob"])


def _run_launcher(cfg: TrainConfig, count: int, order: Path, machine: int) -> int:
    silence_libraries()
    command = [*launcher_command(cfg, count, machine), "-m", RANK_MODULE, str(order)]
    return subprocess.run(command, env=_launcher_environment()).returncode


def launcher_command(cfg: TrainConfig, count: int, machine: int) -> list[str]:
    """The command before `-m MODULE`: torchrun, or `accelerate launch` with a config of TRL."""
    runtime = cfg.runtime
    if runtime.launch in ("auto", "torchrun"):
        arguments = _torchrun_arguments(cfg, count, machine)
        return [sys.executable, "-m", "torch.distributed.run", *arguments]
    trl = find_spec("trl")
    assert trl and trl.origin
    name = TRL_NAMES.get(runtime.launch, runtime.launch)
    config = Path(trl.origin).parent / "accelerate_configs" / f"{name}.yaml"
    meet = ["--main_process_port", "0"]  # a free one
    if runtime.machines > 1:
        meet = ["--num_machines", str(runtime.machines), "--machine_rank", str(machine)]
        meet += ["--main_process_ip", str(runtime.address)]
        meet += ["--main_process_port", str(runtime.port)]
    arguments = ["--config_file", str(config)]
    arguments += ["--num_processes", str(count * runtime.machines), *meet]
    arguments += ["--mixed_precision", "bf16" if cfg.dtype == "bfloat16" else "no"]
    if runtime.launch == "fsdp2":
        # Without this a model that is loaded once the process group exists, such as a reference,
        # is empty on all ranks but the first.
        arguments += ["--fsdp_cpu_ram_efficient_loading", "false"]
    return [sys.executable, "-m", "accelerate.commands.launch", *arguments]


def _torchrun_arguments(cfg: TrainConfig, count: int, machine: int) -> list[str]:
    runtime, per_node = cfg.runtime, ["--nproc_per_node", str(count)]
    if runtime.machines == 1:
        return ["--standalone", *per_node]
    meet = ["--master_addr", str(runtime.address), "--master_port", str(runtime.port)]
    return ["--nnodes", str(runtime.machines), "--node_rank", str(machine), *meet, *per_node]


def _launcher_environment() -> dict[str, str]:
    """Set the threads per process: torchrun would set 1 too, and print a long warning."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    sys.exit(join_training(Path(sys.argv[1]), int(sys.argv[2])))
