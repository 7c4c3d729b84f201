"""What the trainings of a plan will take, as far as it is known before anything runs: shown by a dry run.

Exact where the pairs are in the store, at most so much where they are not; silent about what nobody knows yet.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline import footprint, machine, outlook, store
from pipeline.artifacts import MODEL_FILE, Model, Pairs, open_artifact
from pipeline.config import Checkpoint, Draw, TinyBase, TrainConfig
from pipeline.errors import Refusal
from pipeline.step import Step
from pipeline.survey import Found, Planned

INNER = 8 / 3  # a tiny model's gates are so much wider than the model


def check(planned: Planned, coming: list[Step]) -> None:
    """Refuses trainings that cannot run here whatever their pairs are: no such GPU, too little memory or disk."""
    gpus = len(machine.gpus())
    for step in coming:
        cfg = step.config
        if not isinstance(cfg, TrainConfig):
            continue
        if fault := machine.missing_gpus() or cfg.unfit(gpus):
            raise Refusal(fault)
        if shape := shape_of(planned, step.inputs["init"]):
            least = outlook.short_of_memory(shape, cfg, 0, 0, cfg.runtime.world(gpus))
            if short := least or outlook.short_of_disk(shape, cfg, planned.root):
                raise Refusal(short)


def lines(planned: Planned, found: dict[str, Found]) -> Iterator[str]:
    """A block for each training that is to do."""
    for step in planned.steps:
        if isinstance(step.config, TrainConfig) and found[planned.fingerprint(step)][0] is None:
            shown = list(_of(planned, step, step.config))
            yield f"  train round {step.label}: {shown[0]}"
            yield from (f"    {line}" for line in shown[1:])


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
        yield f"{most}{steps} steps of {cfg.batch} · {rows:,} rows · {tokens:,} tokens"
    if known:
        yield outlook.spread(outlook.histogram(known))
    shape, world = shape_of(planned, step.inputs["init"]), cfg.runtime.world(len(machine.gpus()))
    yield from outlook.told(shape, cfg, longest, world, tokens, _measured(planned, step))


def _lengths(planned: Planned, step: Step, cfg: TrainConfig) -> list[int]:
    """Tokens of each sequence, where all the pairs are there."""
    import polars as pl

    folders = [planned.folder(source) for source in step.inputs["pairs"]]
    if any(not (folder / "train.parquet").is_file() for folder in folders):
        return []
    tables = [Pairs(folder).thumbs() if cfg.trainer == "kto" else Pairs(folder).train() for folder in folders]
    return outlook.sides(pl.concat(tables), "token_ids")


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


def shape_of(planned: Planned, step: Step) -> footprint.Shape | None:
    """Of a model that is there, that is made here, or that another one is made from."""
    folder = planned.folder(step)
    if (folder / MODEL_FILE).exists():
        model = open_artifact(step.stage, folder)
        assert isinstance(model, Model)
        return footprint.shape_in(Path(model.weights)) if (model.path / MODEL_FILE).exists() else None
    match step.config:
        case TinyBase() as tiny:
            inner = int(tiny.hidden * INNER)
            sizes = {"hidden_size": tiny.hidden, "intermediate_size": inner, "num_hidden_layers": tiny.layers}
            heads = {"num_attention_heads": tiny.heads, "vocab_size": tiny.vocabulary}
            return footprint.shape_of({**sizes, **heads, "tie_word_embeddings": True})
        case Checkpoint():
            local = step.config.model.local
            return footprint.shape_in(Path(step.config.model).expanduser()) if local else _shape_in_cache(step.config)
    if step.stage == "gate":  # whichever it chooses, all of them were made from sft
        return shape_of(planned, step.inputs["exams"]["sft"]["model"])
    above = step.inputs.get("init") or step.inputs.get("base")
    return shape_of(planned, above) if isinstance(above, Step) else None


def _shape_in_cache(cfg: Checkpoint) -> footprint.Shape | None:
    """A hub model that was downloaded before; no network is asked."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(str(cfg.model), "config.json", revision=cfg.revision)
    return footprint.shape_in(Path(file).parent) if isinstance(file, str) else None


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
