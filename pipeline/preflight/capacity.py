"""What a plan needs of this machine: engines that fit a GPU, trainings that fit, and dtypes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline import hardware
from pipeline.config import (
    Config,
    ConversationRequest,
    SampleRequest,
    TrainConfig,
    TransformersBackend,
    VllmBackend,
)
from pipeline.errors import UserError, pluralize
from pipeline.preflight.lineage import find_shape, find_weights
from pipeline.preflight.training_fits import TrainingFits
from pipeline.resources import inference_memory
from pipeline.status import RunPlan
from pipeline.step import Step


def list_checks(
    run_plan: RunPlan, fits: TrainingFits, coming: list[Step]
) -> Iterator[Callable[[], None]]:
    """Refuse what cannot run here: engines that no GPU holds, trainings that do not fit."""
    if fits.is_here:
        yield partial(check_engines, run_plan, coming)
    for step in coming:
        if isinstance(step.config, TrainConfig):
            yield partial(fits.check, step, step.config)


def check_engines(run_plan: RunPlan, coming: list[Step]) -> None:
    """Refuse to sample from a model that the GPUs here cannot hold."""
    engines = _list_engines(run_plan, coming)
    shortages = [inference_memory.shortage(needs, place) for _, needs, place in engines if place]
    if faults := [fault for fault in dict.fromkeys(shortages) if fault]:
        raise UserError(*faults)


def describe_dtype(cfg: Config) -> Iterator[str]:
    """What `dtype=auto` means on this machine, and why."""
    if cfg.dtype == hardware.AUTO:
        _, reason = hardware.check_bfloat16()
        yield f"dtype auto: {hardware.resolve_dtype(cfg.dtype)} ({reason})"


def warn_of_slow_dtypes(steps: list[Step]) -> Iterator[str]:
    """Warn of models in bfloat16 on a device that does not compute in it."""
    computes, reason = hardware.check_bfloat16()
    if computes:
        return
    found: dict[str, None] = {}
    for step in steps:
        names = _find_bfloat16_knobs(step.config.model_dump())
        found |= dict.fromkeys(f"{step.knob}.{name}" for name in names)
    if knobs := [*found]:
        others = f" and {pluralize(len(knobs) - 1, 'other knob')}" if knobs[1:] else ""
        yield (
            f"! {knobs[0]}=bfloat16{others}: {reason}. Each number is converted to float32 and"
            " back, which is many times slower.\n  Give dtype=auto or dtype=float32."
        )


def _find_bfloat16_knobs(config: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _find_bfloat16_knobs(value, f"{at}{name}.")
        elif name == "dtype" and value == "bfloat16":
            yield f"{at}{name}"


def describe_memory(run_plan: RunPlan, fits: TrainingFits, to_do: list[Step]) -> Iterator[str]:
    """What engines need, one line for all that are alike; then a block for each training."""
    labels: dict[str, list[str]] = {}
    for step, needs, place in _list_engines(run_plan, to_do):
        there = f"there are {place}" if place else "on a GPU (here there is none: main memory)"
        labels.setdefault(f"memory {needs} · {there}", []).append(f"{step.stage} {step.label_text}")
    for need, alike in labels.items():
        others = f" and {len(alike) - 1} more" if alike[1:] else ""
        yield f"  {alike[0]}{others}: {need}"
    for step in to_do:
        if isinstance(step.config, TrainConfig):
            (first, *rest) = fits.describe(step, step.config)
            yield f"  train {step.label_text}: {first}"
            yield from (f"    {line}" for line in rest)


def _list_engines(
    run_plan: RunPlan, steps: list[Step]
) -> Iterator[tuple[Step, inference_memory.EngineNeeds, inference_memory.EnginePlace | None]]:
    """Each sampling Step, what its engine needs if known, and the smallest GPU here if any."""
    smallest = min(hardware.list_gpus(), key=lambda gpu: gpu.free, default=None)
    for step in steps:
        if not isinstance(step.config, SampleRequest):
            continue
        if needs := _estimate_engine(run_plan, step, step.config):
            yield step, needs, _describe_place(step, step.config, smallest) if smallest else None


def _estimate_engine(
    run_plan: RunPlan, step: Step, cfg: SampleRequest
) -> inference_memory.EngineNeeds | None:
    if not isinstance(cfg.backend, VllmBackend | TransformersBackend):
        return None
    if isinstance(cfg.backend, VllmBackend) and cfg.backend.may_save_memory:
        return None
    limits = (
        cfg.request_turn(cfg.turns).limits if isinstance(cfg, ConversationRequest) else cfg.limits
    )
    dtype, length, policy = (
        cfg.backend.dtype,
        limits.prompt + limits.completion,
        step.inputs["policy"],
    )
    if folder := find_weights(run_plan, policy):
        return inference_memory.read_needs(folder, dtype, length)
    shape = find_shape(run_plan, policy)
    return inference_memory.estimate_needs(shape, dtype, length) if shape else None


def _describe_place(
    step: Step, cfg: SampleRequest, gpu: hardware.Gpu
) -> inference_memory.EnginePlace:
    knob = f"{step.knob}.backend"
    if isinstance(cfg.backend, VllmBackend):
        runtime = cfg.backend.runtime
        return inference_memory.EnginePlace(
            knob, gpu.memory, runtime.memory, cfg.backend.gpus, free=gpu.free
        )
    return inference_memory.EnginePlace(knob, gpu.memory, 1.0, 1, vllm=False, free=gpu.free)
