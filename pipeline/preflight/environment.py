"""What this machine and its servers lack: GPUs, keys, a served model, a tracker's package."""

import os
from importlib.util import find_spec

from pydantic import ValidationError

from pipeline import hardware
from pipeline.backends import api_client
from pipeline.config import (
    BackendConfig,
    EndpointBackend,
    Optimization,
    TextModel,
    TrackerConfig,
    TransformersBackend,
    VllmBackend,
    Wandb,
    vllm_args,
)
from pipeline.config.base import Workers
from pipeline.errors import UserError, pluralize
from pipeline.preflight.servers import list_servers
from pipeline.resources import inference_memory
from pipeline.step import Step

WANDB_OFF = {
    "WANDB_MODE": ("offline", "dryrun", "disabled"),
    "WANDB_DISABLED": ("true", "1", "yes", "on"),
}


def check_packages(stages: set[str]) -> None:
    """The core plans and reads prompts; all other stages need what the extra `models` installs."""
    missing = [name for name in ("torch", "transformers", "trl") if find_spec(name) is None]
    if missing and stages - {"prompts"}:
        raise UserError(
            f"{', '.join(missing)}: not installed. This installation plans, and runs nothing.\n"
            "  Type `pip install 'strop[cpu]'` (gpu with an NVIDIA GPU, portable without vLLM),"
            " or `make install` in a checkout."
        )


def check_engine(
    step: Step, backend: BackendConfig | TextModel, workers: Workers, is_here: bool = True
) -> None:
    stage = "sample" if step.pool_member else step.knob  # which has `runtime` for the pool too
    match backend:
        case VllmBackend():
            if find_spec("vllm") is None:
                error = ModuleNotFoundError("No module named 'vllm'")
                raise inference_memory.missing_vllm(f"{step.knob}.backend", error)
            tensor, stages = backend.runtime.tensor_parallel, backend.pipeline_stages
            if is_here:
                check_gpus(f"{step.knob}.backend", tensor, stage, workers, stages)
        case TransformersBackend() if is_here:
            check_gpus(f"{step.knob}.backend", 1, stage, workers)
        case EndpointBackend():
            api_client.fetch_model_card(f"{step.knob}.backend", backend.runtime, backend.model)


def check_gpus(engine: str, tensor: int, stage: str, workers: Workers, stages: int = 1) -> None:
    """Refuse if this machine has too few GPUs. `engine`, `stage`: their knobs.

    Each worker needs `tensor` for each of the `stages` that a model's layers are split into.
    Without any GPU, engines that would take one each share the CPU.
    """
    each = tensor * stages
    wanted = each * (1 if workers == "auto" else workers)
    gpus = len(hardware.list_gpus()) if wanted > 1 else 0
    if wanted == 1 or gpus >= wanted or (each == 1 and not gpus):
        return
    visible = os.environ.get(hardware.VISIBLE)
    limit = "" if visible is None else f" ({hardware.VISIBLE}={visible})"
    if gpus < each:
        knob, most = f"{engine}.runtime.tensor_parallel={tensor}", max(gpus // stages, 1)
        knob += f" with {vllm_args.PIPELINE_STAGES}={stages}" if stages > 1 else ""
    else:
        knob = f"{stage}.runtime.workers={workers} of {pluralize(each, 'GPU')} each"
        most = gpus // each
    raise UserError(
        f"{knob}: this machine shows {pluralize(gpus, 'GPU')}{limit}.\n"
        f"  Give {f'a number up to {most}' if most > 1 else '1'}, or run where there are {wanted}."
    )


def check_keys(step: Step) -> None:
    """Check keys now: servers and trackers may be needed only after hours."""
    for knob, server in list_servers(step):
        api_client.read_key(knob, server)
    if isinstance(step.config, Optimization):
        check_tracker(step.config.runtime.tracker)


def check_tracker(tracker: TrackerConfig | None) -> None:
    """Check now what a tracker needs: it is opened when training starts, maybe after hours."""
    if tracker and not find_spec(tracker.kind):
        raise UserError(
            f"tracker={tracker.kind}: the package {tracker.kind} is not installed.\n"
            f"  Type `make install`, whose lock has it, or give tracker=none."
        )
    if isinstance(tracker, Wandb) and tracker.mode == "online":
        _check_wandb_online()
        _check_wandb_key()


def _check_wandb_online() -> None:
    """Refuse settings that contradict each other: nothing is sent against one of them."""
    for name, off in WANDB_OFF.items():
        if (value := os.environ.get(name, "")).lower() in off:
            raise UserError(
                f"tracker=wandb: tracker.mode=online, and {name}={value} is set.\n"
                f"  Give tracker.mode=offline or tracker=none, or type `unset {name}`."
            )


def _check_wandb_key() -> None:
    """Find the key by W&B's own code, which knows the server's address and where keys are.

    The server is not asked. The value of a setting is not printed: it may be the key.
    """
    from wandb import teardown
    from wandb.errors import Error
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    fault, remedy = None, "Type `export WANDB_API_KEY=…` or `wandb login`"
    try:
        host = wandb_setup.singleton().settings.base_url
        if not wbauth.authenticate_session(
            host=host, source="preflight", prompt=False, update_session=False
        ):
            where = "WANDB_API_KEY is not set, and the netrc file does not name it."
            fault = f"no key for {host}: {where}"
    except Error as error:
        fault = f"its key: {error}"
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"WANDB_{str(first['loc'][0]).upper()}: {first['msg']}"
        remedy = "Correct it where it is set"
    finally:
        teardown()
    if fault:
        raise UserError(
            f"tracker=wandb: {fault}\n  {remedy}; or give tracker.mode=offline, which needs no key."
        )
