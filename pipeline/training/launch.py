"""How a training is started: in one process on one visible device, or in several under a launcher.

What runs in each of several processes is `training/rank.py`. Called before CUDA is. With several machines the stage
runs on the first one, and each of the others joins it: `python -m pipeline.training.launch ORDER MACHINE`.
"""

import gc
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hardware
from pipeline.artifacts import Artifact, Model, Prompts, write_json
from pipeline.config import TrainConfig
from pipeline.errors import USER_ERROR, StageError, UserError, pluralize
from pipeline.progress import SIGN
from pipeline.training.micro_batch import OutOfMemory

if TYPE_CHECKING:
    import polars as pl

FAULTS = "fault-*.json"  # in scratch, of each process that knows what broke it
NO_MEMORY = "no-memory"  # in scratch, by whichever process it happened to
RANK = "pipeline.training.rank"
PLACES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
)  # a process among others, as launchers tell it
TRL_NAMES = {"ddp": "multi_gpu"}  # the others have one name there and here


def expose_one_device() -> None:
    """Several visible GPUs in one process become a DataParallel that TRL refuses: the first one is taken.

    A cluster may have told this process of others, which trains alone all the same: it would share the batch with them.
    """
    for name in PLACES:
        os.environ.pop(name, None)
    visible = os.environ.get(hardware.VISIBLE)
    if (visible is None and hardware.list_gpus()) or (visible and "," in visible):
        os.environ[hardware.VISIBLE] = (visible or "0").split(",")[0]
    be_quiet()


def be_quiet() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = (
        "1"  # the locks pin it, and tests hold what is used of it
    )
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports every training to its makers


def processes(cfg: TrainConfig) -> int:
    """How many train together on this machine; refused where so many cannot."""
    from pipeline.resources.gpu_sets import visible_gpus

    gpus = len(visible_gpus())
    if fault := cfg.unfit(gpus):
        raise UserError(fault)
    return cfg.runtime.count(gpus)


def alone(
    cfg: TrainConfig,
    out: Path,
    init: Model,
    reference: Model | None,
    dev: Prompts | None,
    rows: "dict[str, pl.DataFrame]",
) -> None:
    """In this process. What an attempt held on the device is given back before the next one."""
    import torch

    from pipeline.training import session

    try:
        return session.train(cfg, out, init, reference, dev, rows)
    except torch.OutOfMemoryError as error:
        full = str(error)
    gc.collect()
    torch.cuda.empty_cache()
    raise OutOfMemory(full)


def in_ranks(cfg: TrainConfig, count: int, out: Path, inputs: dict[str, Artifact | None]) -> None:
    """Start `count` processes on this machine, wait for them, and say what broke the first that knows."""
    scratch = out / "scratch"
    order, full = scratch / "order.json", scratch / NO_MEMORY
    for old in (*scratch.glob(FAULTS), full):
        old.unlink(missing_ok=True)
    paths = {name: str(one.path.absolute()) if one else None for name, one in inputs.items()}
    told = {
        "config": cfg.model_dump(mode="json"),
        "out": str(out.absolute()),
        "processes": count,
        **paths,
    }
    write_json(order, told)
    for other in range(1, cfg.runtime.machines):
        print(
            f"{SIGN} train waits: on machine {other} type python -m {__name__} {order} {other}",
            file=sys.stderr,
        )
    code = _run(cfg, count, order, machine=0)
    if faults := sorted(scratch.glob(FAULTS)):
        said: dict[str, Any] = json.loads(faults[0].read_text())
        raise (UserError if said["refusal"] else StageError)(said["text"])
    if full.exists():
        raise OutOfMemory
    if code:
        raise StageError(
            f"train: {pluralize(count, 'process')} under {cfg.runtime.launch} ended with {code}; the log has their words."
        )


def join(order: Path, machine: int) -> int:
    """One more machine's processes, of a training whose first machine has begun; the exit code of their launcher."""
    if not order.is_file():
        raise UserError(
            f"{order}: no training waits there.\n  Start it on the first machine, which says what to type."
        )
    told = json.loads(order.read_text())
    cfg = TrainConfig(**told["config"])
    if not 0 < machine < cfg.runtime.machines:
        raise UserError(
            f"machine {machine}: train.runtime.machines={cfg.runtime.machines}, and the first of them has begun.\n"
            f"  Give a number from 1 to {cfg.runtime.machines - 1}, another one on each machine."
        )
    return _run(cfg, told["processes"], order, machine)


def _run(cfg: TrainConfig, count: int, order: Path, machine: int) -> int:
    be_quiet()
    command = [*launcher(cfg, count, machine), "-m", RANK, str(order)]
    return subprocess.run(command, env=_environment()).returncode


def launcher(cfg: TrainConfig, count: int, machine: int) -> list[str]:
    """The command before `-m MODULE`: torchrun, or `accelerate launch` with the config of that name in TRL's wheel."""
    asked = cfg.runtime
    if asked.launch in ("auto", "torchrun"):
        return [sys.executable, "-m", "torch.distributed.run", *_torchrun(cfg, count, machine)]
    trl = find_spec("trl")
    assert trl and trl.origin
    config = (
        Path(trl.origin).parent
        / "accelerate_configs"
        / f"{TRL_NAMES.get(asked.launch, asked.launch)}.yaml"
    )
    meet = ["--main_process_port", "0"]  # a free one
    if asked.machines > 1:
        meet = ["--num_machines", str(asked.machines), "--machine_rank", str(machine)]
        meet += ["--main_process_ip", str(asked.address), "--main_process_port", str(asked.port)]
    precision = ["--mixed_precision", "bf16" if cfg.dtype == "bfloat16" else "no"]
    given = [
        "--config_file",
        str(config),
        "--num_processes",
        str(count * asked.machines),
        *meet,
        *precision,
    ]
    if asked.launch == "fsdp2":
        # Otherwise what is loaded once the group stands, such as a live reference, is empty on all but the first.
        given += ["--fsdp_cpu_ram_efficient_loading", "false"]
    return [sys.executable, "-m", "accelerate.commands.launch", *given]


def _torchrun(cfg: TrainConfig, count: int, machine: int) -> list[str]:
    asked, each = cfg.runtime, ["--nproc_per_node", str(count)]
    if asked.machines == 1:
        return ["--standalone", *each]
    meet = ["--master_addr", str(asked.address), "--master_port", str(asked.port)]
    return ["--nnodes", str(asked.machines), "--node_rank", str(machine), *meet, *each]


def _environment() -> dict[str, str]:
    """Threads as in one process: torchrun says at length that it takes one for each."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def main(order: str, machine: str) -> int:
    try:
        return join(Path(order), int(machine))
    except UserError as refusal:
        print(refusal, file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
