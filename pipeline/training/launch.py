"""How a training is started: in one process on one visible device, or in several under a launcher.

What runs in each of several processes is `training/rank.py`. Called before CUDA is.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, write_json
from pipeline.config import TrainConfig
from pipeline.errors import Broken, Refusal


def expose_one_device() -> None:
    """Several visible GPUs in one process become a DataParallel that TRL refuses: the first one is taken."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or "," in visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]
    be_quiet()


def be_quiet() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # the locks pin it, and tests hold what is used of it
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL reports every training to its makers


def processes(cfg: TrainConfig) -> int:
    """How many train together: one per GPU unless a number is given. Refused when `batch` does not share out evenly."""
    from pipeline.crew import visible_gpus

    asked = cfg.runtime.processes
    wanted = max(1, len(visible_gpus())) if asked == "auto" else asked
    if cfg.batch % (cfg.runtime.micro_batch * wanted):
        raise Refusal(
            f"train.batch={cfg.batch} does not share out to {wanted} processes of "
            f"train.runtime.micro_batch={cfg.runtime.micro_batch} pairs.\n"
            f"  Give a batch that is a multiple of {cfg.runtime.micro_batch * wanted}, another "
            f"train.runtime.micro_batch, or train.runtime.processes."
        )
    return wanted


def in_ranks(cfg: TrainConfig, count: int, out: Path, inputs: dict[str, Artifact | None]) -> None:
    """Start `count` processes on this machine, wait for them, and say what the first of them said."""
    scratch = out / "scratch"
    fault = scratch / "fault.json"
    fault.unlink(missing_ok=True)
    paths = {name: str(one.path) if one else None for name, one in inputs.items()}
    order = {"config": cfg.model_dump(mode="json"), "out": str(out), "processes": count, **paths}
    write_json(scratch / "order.json", order)
    be_quiet()
    command = [*_launcher(cfg, count), "-m", "pipeline.training.rank", str(scratch / "order.json")]
    code = subprocess.run(command, env=_environment()).returncode
    if fault.exists():
        said: dict[str, Any] = json.loads(fault.read_text())
        raise (Refusal if said["refusal"] else Broken)(said["text"])
    if code:
        raise Broken(f"train: {count} processes under {cfg.runtime.launch} ended with {code}; the log has their words.")


def _launcher(cfg: TrainConfig, count: int) -> list[str]:
    if cfg.runtime.launch == "accelerate":
        from importlib.util import find_spec

        trl = find_spec("trl")
        assert trl and trl.origin
        config = Path(trl.origin).parent / "accelerate_configs" / "multi_gpu.yaml"
        given = ["--config_file", str(config), "--num_processes", str(count), "--mixed_precision", "no"]
        return [sys.executable, "-m", "accelerate.commands.launch", *given]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]


def _environment() -> dict[str, str]:
    """Threads as in one process: torchrun says at length that it takes one for each."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
