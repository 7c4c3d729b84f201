"""What a training will take, in words: alike before a run (`forecast`) and before a first step (`training/ahead`)."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hardware
from pipeline.config import TrainConfig
from pipeline.errors import pluralize
from pipeline.resources import model_shape, training_memory
from pipeline.resources.model_shape import Shape, amount

if TYPE_CHECKING:
    import polars as pl

ANSWERS = 64  # that a policy in training draws together, where there is room: each is a row with a key-value cache
ON_A_CPU = 8  # rows at once: more are padded more there, and nothing is gained
BINS = 8


@dataclass(frozen=True)
class Pace:
    """What an earlier training measured: tokens a second between looks, and seconds of a look."""

    tokens: float
    look: float


def sides(table: "pl.DataFrame", ids: str = "ids") -> list[int]:
    """Tokens of each sequence that is trained on: a prompt with one of its answers. `ids`: how its columns end."""
    prompt = table[f"prompt_{ids}"].list.len()
    answers = ["completion_ids", "token_ids", f"chosen_{ids}", f"rejected_{ids}"]
    return [
        n
        for name in answers
        if name in table.columns
        for n in (prompt + table[name].list.len()).to_list()
    ]


def histogram(lengths: list[int]) -> dict[str, Any]:
    width = -(-(max(lengths) + 1) // BINS)
    counts = [0] * BINS
    for length in lengths:
        counts[length // width] += 1
    return {"width": width, "counts": counts, "longest": max(lengths)}


def spread(found: dict[str, Any]) -> str:
    return f"lengths  {' '.join(map(str, found['counts']))} in bins of {found['width']} tokens, up to {found['longest']}"


def rows_at_once(shape: Shape | None, cfg: TrainConfig, longest: int, world: int) -> int:
    """The `micro_batch` that was given, or what `auto` comes to: the most that fit, by the estimate."""
    if cfg.runtime.micro_batch != "auto":
        return cfg.runtime.micro_batch
    if together := cfg.loss_group_per_process(world):
        return together
    each = cfg.batch // world
    if shape is None or not hardware.list_gpus():
        each = max(n for n in range(1, min(each, ON_A_CPU) + 1) if each % n == 0)
    if shape is None:
        return each
    return training_memory.most_rows(
        shape, cfg, each, longest, world, room(cfg)[0], gpu=bool(hardware.list_gpus())
    )


def needs(
    shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int
) -> training_memory.Memory:
    """Of the kind of device that is here."""
    return training_memory.memory(shape, cfg, rows, longest, world, gpu=bool(hardware.list_gpus()))


def answers_at_once(shape: Shape, cfg: TrainConfig, most: int) -> int:
    """Of those that a policy in training draws of its own: by the memory that is free between two steps."""
    training = _between_steps(shape, cfg)
    return max(1, min(most, int((room(cfg)[0] - training.between_steps) // training.token.answer)))


def look(shape: Shape, cfg: TrainConfig) -> tuple[int, float]:
    """How many answers of its own a look draws at once, and the bytes that it comes to if all are long."""
    training = _between_steps(shape, cfg)
    if not training.looks:
        return 0, 0.0
    answers = answers_at_once(shape, cfg, min(ANSWERS, cfg.guards.prompts))
    return answers, training.between_steps + answers * training.token.answer


def _between_steps(shape: Shape, cfg: TrainConfig) -> training_memory.Training:
    gpus = len(hardware.list_gpus())
    return training_memory.Training(shape, cfg, 0, 0, cfg.runtime.world_size(gpus), bool(gpus))


def room(cfg: TrainConfig) -> tuple[float, str]:
    """Bytes that one process may fill, and of what: of what is free of its GPU, or its share of free main memory."""
    size, where = hardware.measure_memory()
    sharing = 1 if hardware.list_gpus() else cfg.runtime.count_processes(0)
    among = f", for each of {sharing} processes" if sharing > 1 else ""
    said = f"train.runtime.memory={cfg.runtime.memory:g} of {amount(size)} {where}{among}"
    return size * cfg.runtime.memory / sharing, said


def told(
    shape: Shape | None,
    cfg: TrainConfig,
    longest: int,
    world: int,
    tokens: int | None,
    pace: Pace | None = None,
    steps: int = 0,
) -> Iterator[str]:
    """`pace`: as it was measured, where it was."""
    if shape is None:
        yield "memory   not known: the model is not there yet, or of a kind without estimate"
        return
    rows, space = rows_at_once(shape, cfg, longest, world), model_shape.disk(shape, cfg)
    takes, (has, said) = needs(shape, cfg, rows, longest, world), room(cfg)
    yield f"memory   {takes} for {pluralize(rows, 'row')} at once"
    answers, most = look(shape, cfg)
    if most > takes.total:
        yield f"         up to {amount(most)} where a look draws {pluralize(answers, 'answer')} at once and all are long"
    yield f"         there are {amount(has)} ({said})"
    yield f"disk     {amount(space.most)} at most, of it two checkpoints of {amount(space.checkpoint)}"
    if tokens is None:
        return
    if taken := seconds(shape, cfg, tokens, world, pace, steps):
        hours = taken / 3600
        price = cfg.runtime.gpu_hour
        money = (
            ""
            if price is None or not hardware.list_gpus()
            else f" · money {hours * world * price:.2f}"
        )
        source = "as measured before" if pace else "by the GPU's name"
        looking = looks(cfg, steps) * pace.look if pace else 0.0
        beside = (
            f", of it {spent(looking)} in {pluralize(looks(cfg, steps), 'look')}" if looking else ""
        )
        yield f"time     {spent(taken)} on {world}, {source}{beside}{money}"
    else:
        yield "time     not known before it is measured: strop pilot"


def spent(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def looks(cfg: TrainConfig, steps: int) -> int:
    """One before the first step, then one every so often."""
    return 1 + steps // cfg.eval_every


def seconds(
    shape: Shape, cfg: TrainConfig, tokens: int, world: int, pace: Pace | None, steps: int
) -> float | None:
    if pace:
        return tokens / pace.tokens + looks(cfg, steps) * pace.look
    speed = hardware.estimate_speed()
    return model_shape.work(shape, cfg, tokens) / speed / world if speed else None


def short_of_memory(
    shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int
) -> str | None:
    """With no rows: whatever it will read."""
    takes, (has, said) = needs(shape, cfg, rows, longest, world), room(cfg)
    if takes.total <= has:
        return None
    least = (
        f"about {takes} for {pluralize(rows, 'row')} of {longest} tokens at once"
        if rows
        else f"at least {takes}"
    )
    fewer = "train.runtime.micro_batch, " if rows > 1 and cfg.together is None else ""
    return (
        f"train needs {least}.\n"
        f"  There are {amount(has)} ({said}).\n"
        f"  Lower {fewer}limits, or give train.gradient_checkpointing=true, adapter@train.adapter=lora or qlora, or "
        f"train.runtime.launch=fsdp2 on several GPUs; a higher train.runtime.memory overrules the estimate."
    )


def short_of_disk(shape: Shape, cfg: TrainConfig, folder: Path) -> str | None:
    needs = model_shape.disk(shape, cfg)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needs.most <= free:
        return None
    return (
        f"train needs {amount(needs.most)} of disk: a checkpoint of {amount(needs.checkpoint)} beside the one before, "
        f"and {amount(needs.models)} of models. {there} has {amount(free)} free.\n"
        f"  Free space (strop store --prune lists what no run needs), give another store=FOLDER,"
        f" or adapter@train.adapter=lora."
    )
