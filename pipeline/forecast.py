"""What the draws and trainings of a plan will take, as far as it is known before anything runs: shown by a dry run.

Exact where the pairs are in the store, at most so much where they are not; silent about what nobody knows yet.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial

from pipeline import engines, footprint, machine, outlook, store
from pipeline.artifacts import Pairs
from pipeline.config import Conversation, Draw, LoraAdapter, TrainConfig, TransformersBackend, VllmBackend
from pipeline.errors import Refusal, nearest, together
from pipeline.lineage import shape_of, weights_of
from pipeline.plural import many
from pipeline.step import Step
from pipeline.survey import Found, Planned


def check(planned: Planned, coming: list[Step]) -> None:
    """Refuses what cannot run here: engines that no GPU holds, and trainings by what is known of their pairs."""
    together(checks(planned, coming))


def checks(planned: Planned, coming: list[Step]) -> Iterator[Callable[[], None]]:
    yield partial(check_engines, planned, coming)
    for step in coming:
        if isinstance(step.config, TrainConfig):
            yield partial(_check_training, planned, step, step.config)


def _check_training(planned: Planned, step: Step, cfg: TrainConfig) -> None:
    if fault := _unfit(planned, step, cfg, *_at_once(planned, step, cfg, _lengths(planned, step, cfg))):
        raise Refusal(fault)


def _unfit(planned: Planned, step: Step, cfg: TrainConfig, rows: int = 0, longest: int = 0) -> str | None:
    """Why this cannot be trained here, whatever its pairs are or by what is known of them; None: it can."""
    gpus = len(machine.gpus())
    if fault := machine.missing_gpus() or cfg.unfit(gpus):
        return fault
    if fault := _no_such_layer(planned, step, cfg):
        return fault
    if shape := shape_of(planned, step.inputs["init"]):
        short = outlook.short_of_memory(shape, cfg, rows, longest, cfg.runtime.world(gpus))
        return short or outlook.short_of_disk(shape, cfg, planned.root)
    return None


def _no_such_layer(planned: Planned, step: Step, cfg: TrainConfig) -> str | None:
    """Told by the files of the weights, where they are here; a pattern is read where the model is known as modules."""
    folder = weights_of(planned, step.inputs["init"])
    if folder is None or not isinstance(cfg.adapter, LoraAdapter) or isinstance(cfg.adapter.targets, str):
        return None
    layers = footprint.layers_in(folder)
    for target in cfg.adapter.targets:
        if layers and not any(f".{layer}".endswith(f".{target}") for layer in layers):
            known = sorted({name for layer in layers if (name := layer.rpartition(".")[2]).endswith("proj")})
            return f"train.adapter.targets: {target}: no layer of this model has that name. {nearest(target, known)}"
    return None


def check_engines(planned: Planned, coming: list[Step]) -> None:
    """Refuses draws from a model that the GPUs here cannot hold."""
    found = [engines.shortage(needs, place) for _, needs, place in _engines(planned, coming) if place]
    if short := [fault for fault in dict.fromkeys(found) if fault]:
        raise Refusal(*short)


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


def _engines(planned: Planned, steps: list[Step]) -> Iterator[tuple[Step, engines.Needs, engines.Place | None]]:
    """What the engine of each draw takes, where it is known, and the smallest GPU that it may have, if there is one."""
    smallest = min((gpu.memory for gpu in machine.gpus()), default=0)
    for step in steps:
        if isinstance(step.config, Draw) and (needs := _engine_needs(planned, step, step.config)):
            yield step, needs, _place(step, step.config, smallest) if smallest else None


def _engine_needs(planned: Planned, step: Step, cfg: Draw) -> engines.Needs | None:
    if not isinstance(cfg.backend, VllmBackend | TransformersBackend):
        return None
    limits = cfg.turn(cfg.turns).limits if isinstance(cfg, Conversation) else cfg.limits
    how, policy = (cfg.backend.dtype, limits.prompt + limits.completion), step.inputs["policy"]
    if folder := weights_of(planned, policy):
        return engines.needs_in(folder, *how)
    shape = shape_of(planned, policy)
    return engines.needs_of(shape, *how) if shape else None


def _place(step: Step, cfg: Draw, device: int) -> engines.Place:
    knob = f"{step.knob}.backend"
    if isinstance(cfg.backend, VllmBackend):
        return engines.Place(knob, device, cfg.backend.runtime.memory, cfg.backend.runtime.tensor_parallel)
    return engines.Place(knob, device, 1.0, 1, vllm=False)


def _of(planned: Planned, step: Step, cfg: TrainConfig) -> Iterator[str]:
    sides = 1 if cfg.trainer == "kto" else 2
    known = _lengths(planned, step, cfg)
    rows = len(known) // sides if known else _rows_at_most(planned, step, 2 // sides)
    longest = max(known, default=cfg.max_length)
    tokens = None
    if rows is None:
        yield "how many rows is not known before prompts and pairs are counted"
    else:
        steps, total = footprint.steps(cfg, rows), sum(known) if known else rows * sides * cfg.max_length
        beside = steps * cfg.rehearsed * total / max(rows * sides, 1)  # as if demonstrations were as long
        tokens = round(cfg.epochs * total + beside)
        most = "" if known else "at most "
        yield f"{most}{many(steps, 'step')} of {cfg.batch} · {many(rows, 'row', grouped=True)} · {tokens:,} tokens"
    if known:
        yield outlook.spread(outlook.histogram(known))
    shape, world = shape_of(planned, step.inputs["init"]), cfg.runtime.world(len(machine.gpus()))
    yield from outlook.told(shape, cfg, longest, world, tokens, _measured(planned, step))
    if cfg.low_rate:
        yield f"! {cfg.low_rate}"
    if fault := _unfit(planned, step, cfg, *_at_once(planned, step, cfg, known)):
        yield from f"! a run here refuses this: {fault}".splitlines()


def _at_once(planned: Planned, step: Step, cfg: TrainConfig, known: list[int]) -> tuple[int, int]:
    """Rows that are trained together and the longest of them; 0, 0 where the pairs are not known."""
    if not known:
        return 0, 0
    shape, world = shape_of(planned, step.inputs["init"]), cfg.runtime.world(len(machine.gpus()))
    return outlook.rows_at_once(shape, cfg, max(known), world), max(known)


def _lengths(planned: Planned, step: Step, cfg: TrainConfig) -> list[int]:
    """Tokens of each sequence, where all the pairs are there."""
    import polars as pl

    folders = [planned.folder(source) for source in step.inputs["pairs"]]
    if any(not (folder / "train.parquet").is_file() for folder in folders):
        return []
    made = [Pairs(folder) for folder in folders]
    if cfg.trainer != "kto":
        return outlook.sides(pl.concat(one.train() for one in made), "token_ids")
    held_out = pl.concat(one.dev()["prompt_id"] for one in made)
    thumbs = pl.concat(one.thumbs() for one in made).unique(["sample_id", "label"])
    return outlook.sides(thumbs.filter(~pl.col("prompt_id").is_in(held_out.implode())), "token_ids")


def _rows_at_most(planned: Planned, step: Step, of_each: int) -> int | None:
    """As many pairs for each prompt as `pair` may make, or their thumbs; filters and ties take some of them away."""
    total = 0
    for source in step.inputs["pairs"]:
        draws = [one.config for one in source.inputs.get("samples", []) if isinstance(one.config, Draw)]
        prompts = (draws[0].per_round if draws else None) or (prompts_published(planned) or {}).get("train")
        if prompts is None:
            return None
        every_answer = source.config.thumbs_at is not None and of_each > 1
        if every_answer or "offline" in source.inputs:
            return None
        total += prompts * source.config.pairs_per_prompt * of_each
    return total


def prompts_published(planned: Planned) -> dict[str, int] | None:
    """How many of each part; None where they are not there yet."""
    [made] = [step for step in planned.steps if step.stage == "prompts" and not step.label]  # chat sets have labels
    funnel = planned.folder(made) / "funnel.json"
    return json.loads(funnel.read_text())["out"] if funnel.exists() else None


def _measured(planned: Planned, step: Step) -> float | None:
    """Tokens a second of a training from the same model with the same kind of adapter, as the store knows it."""
    init, kind = planned.fingerprint(step.inputs["init"]), step.config.adapter.kind  # type: ignore[attr-defined]
    for folder in sorted((planned.root / "train").glob("*/")):
        made = store.read_manifest(folder)
        if not made or made["inputs"]["init"]["fingerprint"] != init or made["config"]["adapter"]["kind"] != kind:
            continue
        if made["seconds"] and "tokens" in made["cost"]:
            return float(made["cost"]["tokens"] / made["seconds"])
    return None
