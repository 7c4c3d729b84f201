"""What every vLLM engine needs before it starts: sampling, judges, reward models and lm-eval."""

import glob
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.resources import open_models
from pipeline.resources.model_shape import GIB

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Threads that spin while waiting cost a factor of ten on a shared CPU. Read when torch loads.
    "OMP_WAIT_POLICY": "passive",
}
# An engine in this process starts in 2 s instead of 12, without a second copy of the libraries.
ENVIRONMENT_ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Even then one small function is compiled at the first log-probability, which fails without g++.
ENVIRONMENT_EAGER = {"TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True)
class EnginePlatform:
    """Where vLLM computes. `platform` is vLLM's own description of the device."""

    platform: Any

    @property
    def on_cpu(self) -> bool:
        return bool(self.platform.is_cpu())

    def device_arguments(
        self, memory: float, cpu_cache_gib: float, eager: bool | None = None
    ) -> dict[str, Any]:
        """Memory and compilation. `eager`: None compiles on a GPU and not on a CPU."""
        if not self.on_cpu:
            return {"enforce_eager": eager is True, "gpu_memory_utilization": memory}
        is_eager = eager is not False
        set_environment_defaults(ENVIRONMENT_ON_CPU | (ENVIRONMENT_EAGER if is_eager else {}))
        return {"enforce_eager": is_eager, "kv_cache_memory_bytes": int(cpu_cache_gib * GIB)}


def open_platform(explain: Callable[[ImportError], UserError]) -> EnginePlatform:
    """Import vLLM with our environment. `explain`: the error where it is not installed."""
    set_environment_defaults(ENVIRONMENT)
    try:
        importlib.import_module("vllm")  # also where a part of it is loaded already
        from vllm.platforms import current_platform
    except ImportError as error:
        raise explain(error) from error
    return EnginePlatform(current_platform)


def park(key: Any, model: Any, engine: Any) -> None:
    """Leave a model for the next Step; end its engine if an error has interrupted it."""
    if engine.has_unfinished_requests():
        engine.engine_core.shutdown()
    else:
        open_models.park(key, model, engine.engine_core.shutdown)


def check_weights_path(weights: Path | str) -> None:
    """Refuse a folder whose name vLLM takes for a pattern: it would find no weights in it."""
    if not glob.has_magic(str(weights)):
        return
    raise UserError(
        f"{weights}: vLLM reads no weights from a folder with [ ] * or ? in its path.\n"
        "  Keep the store (store=FOLDER) or the checkpoint in a folder without these characters."
    )


def set_environment_defaults(environment: dict[str, str]) -> None:
    """Set the variables that the user has not set."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
