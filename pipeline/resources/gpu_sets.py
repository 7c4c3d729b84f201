"""Which GPUs each of several processes may see: groups of equal size, told by CUDA_VISIBLE_DEVICES."""

import os
from typing import Literal

from pipeline.errors import UserError, pluralize
from pipeline.hardware import VISIBLE

Environment = dict[str, str]
Workers = int | Literal["auto"]


def environments(workers: Workers, knob: str, gpus_each: int = 1) -> list[Environment]:
    """One for each hand, naming the GPUs it may see. `auto`: as many as the GPUs give, and one without GPU."""
    gpus = visible_gpus() if (workers, gpus_each) != (1, 1) else []  # which loads torch
    if not gpus and gpus_each == 1:
        return [{}] * (1 if workers == "auto" else workers)
    groups = [gpus[at : at + gpus_each] for at in range(0, len(gpus) - gpus_each + 1, gpus_each)]
    wanted = max(len(groups), 1) if workers == "auto" else workers
    if wanted > len(groups):
        raise UserError(
            f"{knob}={workers}: {pluralize(wanted, 'engine')} of {pluralize(gpus_each, 'GPU')} each would take "
            f"{wanted * gpus_each}, and {len(gpus)} can be seen here.\n"
            f"  Give fewer workers or a smaller tensor_parallel"
            f"{f', or name more GPUs in {VISIBLE}' if VISIBLE in os.environ else ''}."
        )
    return [{VISIBLE: ",".join(group)} for group in groups[:wanted]]


def visible_gpus() -> list[str]:
    """By the names that were given (numbers or UUIDs), or by number; counted without opening any."""
    import torch

    count = torch.cuda.device_count()
    told = os.environ.get(VISIBLE)
    named = map(str, range(count)) if told is None else (name.strip() for name in told.split(","))
    return list(named)[:count]
