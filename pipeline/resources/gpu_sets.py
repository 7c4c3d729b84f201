"""Which GPUs each of several processes sees: groups of equal size, set by CUDA_VISIBLE_DEVICES."""

import os
from typing import Literal

from pipeline.errors import UserError, pluralize
from pipeline.hardware import VISIBLE

Environment = dict[str, str]
Workers = int | Literal["auto"]


def worker_environments(workers: Workers, knob: str, gpus_each: int = 1) -> list[Environment]:
    """One environment for each worker, naming its GPUs.

    `auto` means as many workers as the GPUs allow, and one without a GPU.
    """
    gpus = visible_gpus() if (workers, gpus_each) != (1, 1) else []  # which loads torch
    if not gpus and gpus_each == 1:
        return [{}] * (1 if workers == "auto" else workers)
    groups = [gpus[at : at + gpus_each] for at in range(0, len(gpus) - gpus_each + 1, gpus_each)]
    wanted = max(len(groups), 1) if workers == "auto" else workers
    if wanted > len(groups):
        engines = f"{pluralize(wanted, 'engine')} of {pluralize(gpus_each, 'GPU')} each"
        more_gpus = f", or name more GPUs in {VISIBLE}" if VISIBLE in os.environ else ""
        raise UserError(
            f"{knob}={workers}: {engines} need {wanted * gpus_each} GPUs,"
            f" and {len(gpus)} are visible here.\n"
            f"  Give fewer workers or a smaller tensor_parallel{more_gpus}."
        )
    return [{VISIBLE: ",".join(group)} for group in groups[:wanted]]


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them (numbers or UUIDs), else numbered. Opens no GPU."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get(VISIBLE)
    gpus = map(str, range(count)) if names is None else (name.strip() for name in names.split(","))
    return list(gpus)[:count]
