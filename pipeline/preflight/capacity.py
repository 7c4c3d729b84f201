"""What the sampling and training of a plan will take, as far as it is known before anything runs.

Exact where the pairs are in the store, an upper bound where they are not. What is not known yet is
left out. A dry run prints it.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline import hardware, store
from pipeline.artifacts import Pairs, read_object
from pipeline.config import (
    Config,
    ConversationRequest,
    LoraAdapter,
    PairRound,
    SampleRequest,
    TrainConfig,
    TransformersBackend,
    VllmBackend,
)
from pipeline.errors import UserError, pluralize, run_all
from pipeline.models.lora_targets import explain_unknown_target
from pipeline.preflight.lineage import find_shape, find_weights
from pipeline.resources import inference_memory, model_shape, training_fit
from pipeline.resources.model_shape import Shape
from pipeline.status import RunPlan, StepStatus
from pipeline.step import Step


def check_capacity(run_plan: RunPlan, coming: list[Step]) -> None:
    """Refuse what cannot run here: engines that no GPU holds, trainings that do not fit."""
    run_all(list_checks(run_plan, coming))


def list_checks(run_plan: RunPlan, coming: list[Step]) -> Iterator[Callable[[], None]]:
    yield partial(check_engines, run_plan, coming)
    for step in coming:
        if isinstance(step.config, TrainConfig):
            yield partial(_check_training, run_plan, step, step.config)


def _check_training(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> None:
    rows, longest = _count_rows_at_once(run_plan, step, cfg, _read_lengths(run_plan, step, cfg))
    if fault := _explain_misfit(run_plan, step, cfg, rows, longest):
        raise UserError(fault)


def _explain_misfit(
    run_plan: RunPlan, step: Step, cfg: TrainConfig, rows: int = 0, longest: int = 0
) -> str | None:
    """Why this cannot be trained here, by what is known of its pairs; None if it can."""
    gpus = len(hardware.list_gpus())
    if fault := hardware.explain_missing_gpus() or cfg.explain_misfit(gpus):
        return fault
    if fault := _find_unknown_layer(run_plan, step, cfg):
        return fault
    if shape := find_shape(run_plan, step.inputs["init"]):
        short = training_fit.memory_shortage(
            shape, cfg, rows, longest, cfg.runtime.world_size(gpus)
        )
        return short or training_fit.disk_shortage(shape, cfg, run_plan.root)
    return None


def _find_unknown_layer(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> str | None:
    """The error for a target that no local layer has.

    A pattern is of whole names, which may differ between a model and its files: training checks it.
    """
    folder, adapter = find_weights(run_plan, step.inputs["init"]), cfg.adapter
    if folder is None or not isinstance(adapter, LoraAdapter) or isinstance(adapter.targets, str):
        return None
    layers = model_shape.read_layer_names(folder)
    linear = [name for name in layers if not re.search("norm|embed", name.rpartition(".")[2])]
    return explain_unknown_target(adapter.targets, layers, linear, "lm_head") if layers else None


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


def describe_memory(run_plan: RunPlan, statuses: dict[str, StepStatus]) -> Iterator[str]:
    """What engines need, one line for all that are alike; then a block for each training to do."""
    to_do = [step for step in run_plan.steps if statuses[run_plan.fingerprint(step)][0] is None]
    labels: dict[str, list[str]] = {}
    for step, needs, place in _list_engines(run_plan, to_do):
        there = f"there are {place}" if place else "on a GPU (here there is none: main memory)"
        labels.setdefault(f"memory {needs} · {there}", []).append(step.label_text)
    for need, alike in labels.items():
        others = f" and {len(alike) - 1} more" if alike[1:] else ""
        yield f"  sample {alike[0]}{others}: {need}"
    for step in to_do:
        if isinstance(step.config, TrainConfig):
            (first, *rest) = _describe_training(run_plan, step, step.config)
            yield f"  train round {step.label}: {first}"
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
            knob, gpu.memory, runtime.memory, runtime.tensor_parallel, free=gpu.free
        )
    return inference_memory.EnginePlace(knob, gpu.memory, 1.0, 1, vllm=False, free=gpu.free)


def _describe_training(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> Iterator[str]:
    sides = 1 if cfg.trainer == "kto" else 2
    lengths = _read_lengths(run_plan, step, cfg)
    rows = len(lengths) // sides if lengths else count_rows_at_most(run_plan, step, 2 // sides)
    longest = max(lengths, default=cfg.max_length)
    steps, tokens = None, None
    if rows is None:
        yield "how many rows is not known before prompts and pairs are counted"
    else:
        steps, tokens = _count_steps_and_tokens(cfg, rows, sides, lengths)
        bound = "" if lengths else "at most "
        size = f"{pluralize(rows, 'row', grouped=True)} · {tokens:,} tokens"
        yield f"{bound}{pluralize(steps, 'step')} of {cfg.batch} · {size}"
    if lengths:
        yield training_fit.format_histogram(training_fit.build_histogram(lengths))
    shape = find_shape(run_plan, step.inputs["init"])
    world, pace = (
        cfg.runtime.world_size(len(hardware.list_gpus())),
        _find_pace(run_plan, step, shape),
    )
    needs = [*training_fit.describe_needs(shape, cfg, longest, world, tokens, pace, steps or 0)]
    yield from needs
    if shape and tokens is not None and not any(line.startswith("time") for line in needs):
        yield "time     not known before it is measured: strop pilot"
    if cfg.low_rate_warning:
        yield f"! {cfg.low_rate_warning}"
    # With an upper bound of rows this warns only if even that is too few.
    if rows and (warning := cfg.explain_few_steps(model_shape.count_steps(cfg, rows))):
        yield f"! {warning}"
    rows_at_once, longest = _count_rows_at_once(run_plan, step, cfg, lengths)
    if fault := _explain_misfit(run_plan, step, cfg, rows_at_once, longest):
        yield from f"! a run here refuses this: {fault}".splitlines()


def _count_steps_and_tokens(
    cfg: TrainConfig, rows: int, sides: int, lengths: list[int]
) -> tuple[int, int]:
    """Steps and tokens of a training. Unknown lengths count as `max_length`."""
    steps = model_shape.count_steps(cfg, rows)
    total = sum(lengths) if lengths else rows * sides * cfg.max_length
    mean_tokens = total / max(rows * sides, 1)
    rehearsal = (
        steps * cfg.rehearsal_rows * mean_tokens
    )  # demonstrations count as long as the answers
    return steps, round(cfg.epochs * total + rehearsal)


def estimate_training_seconds(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> float | None:
    """At most, evaluations included; None if not known yet."""
    sides = 1 if cfg.trainer == "kto" else 2
    lengths = _read_lengths(run_plan, step, cfg)
    rows = len(lengths) // sides if lengths else count_rows_at_most(run_plan, step, 2 // sides)
    shape = find_shape(run_plan, step.inputs["init"])
    if rows is None or shape is None:
        return None
    steps, tokens = _count_steps_and_tokens(cfg, rows, sides, lengths)
    world, pace = (
        cfg.runtime.world_size(len(hardware.list_gpus())),
        _find_pace(run_plan, step, shape),
    )
    return training_fit.estimate_seconds(shape, cfg, tokens, world, pace, steps)


def _count_rows_at_once(
    run_plan: RunPlan, step: Step, cfg: TrainConfig, lengths: list[int]
) -> tuple[int, int]:
    """Rows that are trained together and the longest of them; 0, 0 if the pairs are not known."""
    if not lengths:
        return 0, 0
    shape = find_shape(run_plan, step.inputs["init"])
    world = cfg.runtime.world_size(len(hardware.list_gpus()))
    return training_fit.choose_micro_batch(shape, cfg, max(lengths), world), max(lengths)


def _read_lengths(run_plan: RunPlan, step: Step, cfg: TrainConfig) -> list[int]:
    """Tokens of each sequence; none unless all the pairs are built."""
    import polars as pl

    folders = [run_plan.folder(source) for source in step.inputs["pairs"]]
    if any(not (folder / "train.parquet").is_file() for folder in folders):
        return []
    pairs = [Pairs(folder) for folder in folders]
    if cfg.trainer != "kto":
        return training_fit.sequence_lengths(
            pl.concat(each.read_train() for each in pairs), "token_ids"
        )
    held_out = pl.concat(each.read_dev()["prompt_id"] for each in pairs)
    unpaired = pl.concat(each.read_unpaired() for each in pairs).unique(["sample_id", "label"])
    trained = unpaired.filter(~pl.col("prompt_id").is_in(held_out.implode()))
    return training_fit.sequence_lengths(trained, "token_ids")


def count_rows_at_most(run_plan: RunPlan, step: Step, rows_per_pair: int) -> int | None:
    """The most pairs that `pair` may make, or their answers; filters and ties remove some."""
    total = 0
    for source in step.inputs["pairs"]:
        pairs = count_pairs_at_most(run_plan, source)
        takes_every_answer = source.config.unpaired_threshold is not None and rows_per_pair > 1
        if pairs is None or takes_every_answer:
            return None
        total += pairs * rows_per_pair
    return total


def count_pairs_at_most(run_plan: RunPlan, source: Step) -> int | None:
    """The most pairs of a Step; None with offline rows, whose number is not known yet."""
    configs = [step.config for step in source.inputs.get("samples", [])]
    requests = [config for config in configs if isinstance(config, SampleRequest)]
    prompts = requests[0].per_round if requests else None
    prompts = prompts or (count_published_prompts(run_plan) or {}).get("train")
    if prompts is None or source.stage != "pair" or "offline" in source.inputs:
        return None
    assert isinstance(source.config, PairRound)
    return prompts * source.config.max_pairs_per_prompt


def count_published_prompts(run_plan: RunPlan) -> dict[str, int] | None:
    """The prompts of each part; None while they are not built, or where their file is damaged."""
    # The questions of chat benchmarks have labels.
    steps = [step for step in run_plan.steps if step.stage == "prompts" and not step.label]
    if not steps:  # until=sft with a checkpoint
        return None
    funnel = run_plan.folder(steps[0]) / "funnel.json"
    try:
        return read_object(funnel, out=dict)["out"]
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None


def _find_pace(run_plan: RunPlan, step: Step, shape: Shape | None) -> training_fit.Pace | None:
    """The newest like training's pace: the same model, or the same shape on this device."""
    cfg = step.config
    assert isinstance(cfg, TrainConfig)
    init, similar = run_plan.fingerprint(step.inputs["init"]), []
    for folder in (run_plan.root / "train").glob("*/"):
        if not store.STEP_NAME.fullmatch(folder.name):
            continue
        made = store.read_valid_manifest(folder)
        if not made or "tokens" not in made["cost"]:
            continue
        if made["config"].get("adapter", {}).get("kind") != cfg.adapter.kind:
            continue
        same_model = made["inputs"].get("init", {}).get("fingerprint") == init
        same_shape = shape is not None and made["cost"].get("parameters") == shape.parameters
        same_device = made.get("provenance", {}).get("device") == hardware.describe_device()
        if made["seconds"] and (same_model or (same_shape and same_device)):
            similar.append(made)
    newest = max(similar, key=lambda made: str(made.get("created")), default=None)
    return _compute_pace(newest) if newest else None


def _compute_pace(made: store.Manifest) -> training_fit.Pace:
    """Tokens a second without evaluations, and the seconds of one evaluation."""
    cost = made["cost"]
    seconds_each, every = cost.get("evaluation_seconds", 0.0), made["config"].get("eval_every")
    is_evaluated = seconds_each and every and "steps" in cost
    evaluations = training_fit.count_evaluations(every, cost["steps"]) if is_evaluated else 0
    training_seconds = max(made["seconds"] - evaluations * seconds_each, 0.01)
    return training_fit.Pace(cost["tokens"] / training_seconds, seconds_each)
