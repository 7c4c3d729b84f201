"""What this machine and its servers lack: GPUs, keys, a model that is served, a tracker's package."""

import os
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import machine, served
from pipeline.config import (
    BackendConfig,
    EndpointBackend,
    Optimization,
    ServedModel,
    TrackerConfig,
    TransformersBackend,
    VllmBackend,
    Wandb,
)
from pipeline.config.block import Workers
from pipeline.door.servers import servers_of
from pipeline.errors import Refusal
from pipeline.plural import many
from pipeline.step import Step


def check_engine(step: Step, backend: BackendConfig | ServedModel, workers: Workers) -> None:
    match backend:
        case VllmBackend():
            check_gpus(f"{step.knob}.backend", backend.runtime.tensor_parallel, step.knob, workers)
        case TransformersBackend():
            check_gpus(f"{step.knob}.backend", 1, step.knob, workers)
        case EndpointBackend():
            served.card_of(f"{step.knob}.backend", backend.runtime, backend.model)


def check_gpus(engine: str, together: int, stage: str, workers: Workers) -> None:
    """Whether this machine has `together` GPUs for each of the workers; `engine` and `stage` are the knobs to mend.

    Without any GPU, engines that would take one each share the CPU.
    """
    wanted = together * (1 if workers == "auto" else workers)
    if wanted == 1 or (there := len(machine.gpus())) >= wanted or (together == 1 and not there):
        return
    hidden = os.environ.get(machine.VISIBLE)
    of = "" if hidden is None else f" ({machine.VISIBLE}={hidden})"
    if there < together:
        knob, most = f"{engine}.runtime.tensor_parallel={together}", there or 1
    else:
        knob, most = f"{stage}.runtime.workers={workers} of {many(together, 'GPU')} each", there // together
    raise Refusal(
        f"{knob}: this machine shows {many(there, 'GPU')}{of}.\n"
        f"  Give {f'a number up to {most}' if most > 1 else '1'}, or run where there are {wanted}."
    )


def check_keys(step: Step) -> None:
    """Servers and trackers may be asked after hours; whether their keys are there is known now."""
    for knob, server in servers_of(step):
        served.key_of(knob, server)
    if isinstance(step.config, Optimization):
        check_tracker(step.config.runtime.tracker)


def check_tracker(tracker: TrackerConfig | None) -> None:
    """It is opened when a training starts, which may be after hours; what it needs is known now."""
    if tracker and not find_spec(tracker.kind):
        raise Refusal(
            f"tracker={tracker.kind}: the package {tracker.kind} is not installed.\n"
            f"  Type `make install`, whose lock holds it, or give tracker=none."
        )
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if isinstance(tracker, Wandb) and tracker.mode == "online" and not _key_for(host):
        raise Refusal(
            f"tracker=wandb: there is no key for {host}: WANDB_API_KEY is not set, and the netrc file does not name "
            f"it.\n  Type `export WANDB_API_KEY=…` or `wandb login`; or give tracker.mode=offline, which needs no key."
        )


def _key_for(host: str) -> bool:
    """As W&B looks for it: the environment, then what `wandb login` has stored."""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        stored = netrc(file).authenticators(host) if file.is_file() else None
    except (NetrcParseError, OSError):
        stored = None  # W&B reads no key there either
    return any(os.environ.get(name, "").strip() for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")) or bool(
        stored
    )
