"""What the draws and trainings of a plan will take, as far as it is known before anything runs: shown by a dry run.

Exact where the pairs are in the store, at most so much where they are not; silent about what nobody knows yet.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline import hardware, store
from pipeline.artifacts import Pairs, read_json
from pipeline.config import (
    Config,
    Conversation,
    LoraAdapter,
    SampleRequest,
    TrainConfig,
    TransformersBackend,
    VllmBackend,
)
from pipeline.errors import UserError, many, nearest, together
from pipeline.preflight.lineage import shape_of, weights_of
from pipeline.resources import inference_memory, model_shape, training_fit
from pipeline.resources.model_shape import Shape
from pipeline.status import Found, Planned
from pipeline.step import Step


def check(planned: Planned, coming: list[Step]) -> None:
    """Refuses what cannot run here: engines that no GPU holds, and trainings by what is known of their pairs."""
    together(checks(planned, coming))


def checks(planned: Planned, coming: list[Step]) -> Iterator[Callable[[], None]]:
    yield partial(check_engines, planned, coming)
    for step in coming:
        if isinstance(step.config, TrainConfig):
            yield partial(_check_training, planned, step, step.config)


def _check_training(planned: Planned, step: Step, cfg: TrainConfig) -> None:
    if fault := _unfit(
        planned, step, cfg, *_at_once(planned, step, cfg, _lengths(planned, step, cfg))
    ):
        raise UserError(fault)


def _unfit(
    planned: Planned, step: Step, cfg: TrainConfig, rows: int = 0, longest: int = 0
) -> str | None:
    """Why this cannot be trained here, whatever its pairs are or by what is known of them; None: it can."""
    gpus = len(hardware.gpus())
    if fault := hardware.missing_gpus() or cfg.unfit(gpus):
        return fault
    if fault := _no_such_layer(planned, step, cfg):
        return fault
    if shape := shape_of(planned, step.inputs["init"]):
        short = training_fit.memory_shortage(shape, cfg, rows, longest, cfg.runtime.world(gpus))
        return short or training_fit.disk_shortage(shape, cfg, planned.root)
    return None


def _no_such_layer(planned: Planned, step: Step, cfg: TrainConfig) -> str | None:
    """Told by the files of the weights, where they are here; a pattern is read where the model is known as modules."""
    folder = weights_of(planned, step.inputs["init"])
    if (
        folder is None
        or not isinstance(cfg.adapter, LoraAdapter)
        or isinstance(cfg.adapter.targets, str)
    ):
        return None
    layers = model_shape.read_layer_names(folder)
    for target in cfg.adapter.targets:
        if layers and not any(f".{layer}".endswith(f".{target}") for layer in layers):
            known = sorted(
                {name for layer in layers if (name := layer.rpartition(".")[2]).endswith("proj")}
            )
            return f"train.adapter.targets: {target}: no layer of this model has that name. {nearest(target, known)}"
    return None


def check_engines(planned: Planned, coming: list[Step]) -> None:
    """Refuses draws from a model that the GPUs here cannot hold."""
    found = [
        inference_memory.shortage(needs, place)
        for _, needs, place in _engines(planned, coming)
        if place
    ]
    if short := [fault for fault in dict.fromkeys(found) if fault]:
        raise UserError(*short)


def dtype_lines(cfg: Config) -> Iterator[str]:
    """What `dtype=auto` became on this machine, and why."""
    if cfg.dtype == hardware.AUTO:
        _, reason = hardware.bfloat16_here()
        yield f"dtype auto: {hardware.resolve_dtype(cfg.dtype)} ({reason})"


def slow_dtypes(steps: list[Step]) -> Iterator[str]:
    """A warning where models are asked for in bfloat16 on a device that does not compute in it."""
    computes, reason = hardware.bfloat16_here()
    asked = [
        f"{step.knob}.{knob}"
        for step in steps
        for knob in _knobs_in_bfloat16(step.config.model_dump())
    ]
    if asked and not computes:
        knobs = list(dict.fromkeys(asked))
        others = f" and {many(len(knobs) - 1, 'other knob')}" if knobs[1:] else ""
        yield (
            f"! {knobs[0]}=bfloat16{others}: {reason}. Each number is converted to float32 and back, which is many "
            f"times slower.\n  Give dtype=auto or dtype=float32."
        )


def _knobs_in_bfloat16(config: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _knobs_in_bfloat16(value, f"{at}{name}.")
        elif name == "dtype" and value == "bfloat16":
            yield f"{at}{name}"


def lines(planned: Planned, found: dict[str, Found]) -> Iterator[str]:
    """What engines need, once for all draws that are alike; then a block for each training that is to do."""
    to_do = [step for step in planned.steps if found[planned.fingerprint(step)][0] is None]
    alike: dict[str, list[str]] = {}
    for step, needs, place in _engines(planned, to_do):
        there = f"there are {place}" if place else "on a GPU; here there is none"
        alike.setdefault(f"memory {needs} · {there}", []).append(step.when)
    for said, labels in alike.items():
        yield f"  sample {labels[0]}{f' and {len(labels) - 1} more' if labels[1:] else ''}: {said}"
    for step in to_do:
        if isinstance(step.config, TrainConfig):
            shown = list(_of(planned, step, step.config))
            yield f"  train round {step.label}: {shown[0]}"
            yield from (f"    {line}" for line in shown[1:])


def _engines(
    planned: Planned, steps: list[Step]
) -> Iterator[tuple[Step, inference_memory.EngineNeeds, inference_memory.EnginePlace | None]]:
    """What the engine of each draw takes, where it is known, and the smallest GPU that it may have, if there is one."""
    smallest = min(hardware.gpus(), key=lambda gpu: gpu.free, default=None)
    for step in steps:
        if isinstance(step.config, SampleRequest) and (
            needs := _engine_needs(planned, step, step.config)
        ):
            yield step, needs, _place(step, step.config, smallest) if smallest else None


def _engine_needs(
    planned: Planned, step: Step, cfg: SampleRequest
) -> inference_memory.EngineNeeds | None:
    if not isinstance(cfg.backend, VllmBackend | TransformersBackend):
        return None
    limits = cfg.turn(cfg.turns).limits if isinstance(cfg, Conversation) else cfg.limits
    how, policy = (cfg.backend.dtype, limits.prompt + limits.completion), step.inputs["policy"]
    if folder := weights_of(planned, policy):
        return inference_memory.read_needs(folder, *how)
    shape = shape_of(planned, policy)
    return inference_memory.estimate_needs(shape, *how) if shape else None


def _place(step: Step, cfg: SampleRequest, gpu: hardware.Gpu) -> inference_memory.EnginePlace:
    knob = f"{step.knob}.backend"
    if isinstance(cfg.backend, VllmBackend):
        runtime = cfg.backend.runtime
        return inference_memory.EnginePlace(
            knob, gpu.memory, runtime.memory, runtime.tensor_parallel, free=gpu.free
        )
    return inference_memory.EnginePlace(knob, gpu.memory, 1.0, 1, vllm=False, free=gpu.free)


def _of(planned: Planned, step: Step, cfg: TrainConfig) -> Iterator[str]:
    sides = 1 if cfg.trainer == "kto" else 2
    known = _lengths(planned, step, cfg)
    rows = len(known) // sides if known else rows_at_most(planned, step, 2 // sides)
    longest = max(known, default=cfg.max_length)
    steps, tokens = None, None
    if rows is None:
        yield "how many rows is not known before prompts and pairs are counted"
    else:
        steps, tokens = _reads(cfg, rows, sides, known)
        most = "" if known else "at most "
        yield f"{most}{many(steps, 'step')} of {cfg.batch} · {many(rows, 'row', grouped=True)} · {tokens:,} tokens"
    if known:
        yield training_fit.format_histogram(training_fit.build_histogram(known))
    shape, world = shape_of(planned, step.inputs["init"]), cfg.runtime.world(len(hardware.gpus()))
    yield from training_fit.describe_needs(
        shape, cfg, longest, world, tokens, _measured(planned, step, shape), steps or 0
    )
    if cfg.low_rate:
        yield f"! {cfg.low_rate}"
    if rows and (
        few := cfg.few_steps(model_shape.count_steps(cfg, rows))
    ):  # fewer rows make fewer steps still
        yield f"! {few}"
    if fault := _unfit(planned, step, cfg, *_at_once(planned, step, cfg, known)):
        yield from f"! a run here refuses this: {fault}".splitlines()


def _reads(cfg: TrainConfig, rows: int, sides: int, known: list[int]) -> tuple[int, int]:
    """Steps and tokens of a training; where no length is known each row is taken to be as long as may be."""
    steps, total = (
        model_shape.count_steps(cfg, rows),
        sum(known) if known else rows * sides * cfg.max_length,
    )
    beside = (
        steps * cfg.rehearsed * total / max(rows * sides, 1)
    )  # as if demonstrations were as long
    return steps, round(cfg.epochs * total + beside)


def training_seconds(planned: Planned, step: Step, cfg: TrainConfig) -> float | None:
    """With its looks, at most; None where nobody knows yet."""
    sides = 1 if cfg.trainer == "kto" else 2
    known = _lengths(planned, step, cfg)
    rows = len(known) // sides if known else rows_at_most(planned, step, 2 // sides)
    shape = shape_of(planned, step.inputs["init"])
    if rows is None or shape is None:
        return None
    steps, tokens = _reads(cfg, rows, sides, known)
    world, pace = cfg.runtime.world(len(hardware.gpus())), _measured(planned, step, shape)
    return training_fit.estimate_seconds(shape, cfg, tokens, world, pace, steps)


def _at_once(planned: Planned, step: Step, cfg: TrainConfig, known: list[int]) -> tuple[int, int]:
    """Rows that are trained together and the longest of them; 0, 0 where the pairs are not known."""
    if not known:
        return 0, 0
    shape, world = shape_of(planned, step.inputs["init"]), cfg.runtime.world(len(hardware.gpus()))
    return training_fit.choose_micro_batch(shape, cfg, max(known), world), max(known)


def _lengths(planned: Planned, step: Step, cfg: TrainConfig) -> list[int]:
    """Tokens of each sequence, where all the pairs are there."""
    import polars as pl

    folders = [planned.folder(source) for source in step.inputs["pairs"]]
    if any(not (folder / "train.parquet").is_file() for folder in folders):
        return []
    made = [Pairs(folder) for folder in folders]
    if cfg.trainer != "kto":
        return training_fit.sequence_lengths(pl.concat(one.train() for one in made), "token_ids")
    held_out = pl.concat(one.dev()["prompt_id"] for one in made)
    thumbs = pl.concat(one.thumbs() for one in made).unique(["sample_id", "label"])
    return training_fit.sequence_lengths(
        thumbs.filter(~pl.col("prompt_id").is_in(held_out.implode())), "token_ids"
    )


def rows_at_most(planned: Planned, step: Step, of_each: int) -> int | None:
    """As many pairs for each prompt as `pair` may make, or their thumbs; filters and ties take some of them away."""
    total = 0
    for source in step.inputs["pairs"]:
        pairs = pairs_at_most(planned, source)
        every_answer = source.config.thumbs_at is not None and of_each > 1
        if pairs is None or every_answer:
            return None
        total += pairs * of_each
    return total


def pairs_at_most(planned: Planned, source: Step) -> int | None:
    """Of a Step that makes pairs of samples alone; offline rows are not counted before they are there."""
    draws = [
        one.config
        for one in source.inputs.get("samples", [])
        if isinstance(one.config, SampleRequest)
    ]
    prompts = (draws[0].per_round if draws else None) or (prompts_published(planned) or {}).get(
        "train"
    )
    if prompts is None or source.stage != "pair" or "offline" in source.inputs:
        return None
    most: int = prompts * source.config.pairs_per_prompt  # type: ignore[attr-defined]
    return most


def prompts_published(planned: Planned) -> dict[str, int] | None:
    """How many of each part; None where they are not there yet."""
    made = [
        step for step in planned.steps if step.stage == "prompts" and not step.label
    ]  # chat sets have labels
    if not made:  # until=sft with a checkpoint that is there
        return None
    funnel = planned.folder(made[0]) / "funnel.json"
    return read_json(funnel)["out"] if funnel.exists() else None


def _measured(planned: Planned, step: Step, shape: Shape | None) -> training_fit.Pace | None:
    """Of the newest training of a model of this shape here, with the same kind of adapter, as the store knows it."""
    cfg = step.config
    assert isinstance(cfg, TrainConfig)
    init, found = planned.fingerprint(step.inputs["init"]), []
    for folder in (planned.root / "train").glob("*/"):
        if not store.STEP_NAME.fullmatch(folder.name):
            continue
        made = store.known_manifest(folder)
        if not made or "tokens" not in made["cost"]:
            continue
        if made["config"].get("adapter", {}).get("kind") != cfg.adapter.kind:
            continue
        same = made["inputs"].get("init", {}).get("fingerprint") == init
        alike = shape is not None and made["cost"].get("parameters") == shape.parameters
        here = made.get("provenance", {}).get("device") == hardware.device()
        if made["seconds"] and (same or (alike and here)):
            found.append(made)
    newest = max(found, key=lambda made: str(made.get("created")), default=None)
    return _pace(newest) if newest else None


def _pace(made: store.Manifest) -> training_fit.Pace:
    cost = made["cost"]
    look, every = cost.get("look_seconds", 0.0), made["config"].get("eval_every")
    looks = 1 + cost["steps"] // every if look and every and "steps" in cost else 0
    return training_fit.Pace(cost["tokens"] / max(made["seconds"] - looks * look, 0.01), look)
