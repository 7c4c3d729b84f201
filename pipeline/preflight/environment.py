"""What this machine and its servers lack: GPUs, keys, a model that is served, a tracker's package."""

import os
from importlib.util import find_spec

from pydantic import ValidationError

from pipeline import hardware
from pipeline.backends import api_client
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
from pipeline.config.base import Workers
from pipeline.errors import UserError, many
from pipeline.preflight.servers import servers_of
from pipeline.resources import inference_memory
from pipeline.step import Step

SILENCED = {
    "WANDB_MODE": ("offline", "dryrun", "disabled"),
    "WANDB_DISABLED": ("true", "1", "yes", "on"),
}


def check_engine(step: Step, backend: BackendConfig | ServedModel, workers: Workers) -> None:
    match backend:
        case VllmBackend():
            if find_spec("vllm") is None:
                error = ModuleNotFoundError("No module named 'vllm'")
                raise inference_memory.missing_vllm(f"{step.knob}.backend", error)
            check_gpus(f"{step.knob}.backend", backend.runtime.tensor_parallel, step.knob, workers)
        case TransformersBackend():
            check_gpus(f"{step.knob}.backend", 1, step.knob, workers)
        case EndpointBackend():
            api_client.card_of(f"{step.knob}.backend", backend.runtime, backend.model)


def check_gpus(engine: str, together: int, stage: str, workers: Workers) -> None:
    """Whether this machine has `together` GPUs for each of the workers; `engine` and `stage` are the knobs to mend.

    Without any GPU, engines that would take one each share the CPU.
    """
    wanted = together * (1 if workers == "auto" else workers)
    if wanted == 1 or (there := len(hardware.gpus())) >= wanted or (together == 1 and not there):
        return
    hidden = os.environ.get(hardware.VISIBLE)
    of = "" if hidden is None else f" ({hardware.VISIBLE}={hidden})"
    if there < together:
        knob, most = f"{engine}.runtime.tensor_parallel={together}", there or 1
    else:
        knob, most = (
            f"{stage}.runtime.workers={workers} of {many(together, 'GPU')} each",
            there // together,
        )
    raise UserError(
        f"{knob}: this machine shows {many(there, 'GPU')}{of}.\n"
        f"  Give {f'a number up to {most}' if most > 1 else '1'}, or run where there are {wanted}."
    )


def check_keys(step: Step) -> None:
    """Servers and trackers may be asked after hours; whether their keys are there is known now."""
    for knob, server in servers_of(step):
        api_client.key_of(knob, server)
    if isinstance(step.config, Optimization):
        check_tracker(step.config.runtime.tracker)


def check_tracker(tracker: TrackerConfig | None) -> None:
    """It is opened when a training starts, which may be after hours; what it needs is known now."""
    if tracker and not find_spec(tracker.kind):
        raise UserError(
            f"tracker={tracker.kind}: the package {tracker.kind} is not installed.\n"
            f"  Type `make install`, whose lock holds it, or give tracker=none."
        )
    if isinstance(tracker, Wandb) and tracker.mode == "online":
        _check_wandb_may_send()
        _check_wandb_key()


def _check_wandb_may_send() -> None:
    """Two words that contradict each other: nothing leaves this machine against one of them."""
    for name, off in SILENCED.items():
        if (value := os.environ.get(name, "")).lower() in off:
            raise UserError(
                f"tracker=wandb: tracker.mode=online, and {name}={value} is set.\n"
                f"  Give tracker.mode=offline or tracker=none, or type `unset {name}`."
            )


def _check_wandb_key() -> None:
    """W&B itself is asked, without its server: its settings say which server it is, and it knows where the key lies.

    What a setting holds is not repeated: it may be the key.
    """
    from wandb import teardown
    from wandb.errors import Error
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    fault, mend = None, "Type `export WANDB_API_KEY=…` or `wandb login`"
    try:
        host = wandb_setup.singleton().settings.base_url
        if not wbauth.authenticate_session(
            host=host, source="door", prompt=False, update_session=False
        ):
            fault = f"there is no key for {host}: WANDB_API_KEY is not set, and the netrc file does not name it."
    except Error as error:
        fault = f"its key: {error}"
    except ValidationError as error:
        first = error.errors()[0]
        fault, mend = (
            f"WANDB_{str(first['loc'][0]).upper()}: {first['msg']}",
            "Mend it where it is set",
        )
    finally:
        teardown()
    if fault:
        raise UserError(
            f"tracker=wandb: {fault}\n  {mend}; or give tracker.mode=offline, which needs no key."
        )
