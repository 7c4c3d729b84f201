"""What a training will take, in words: before a run (preflight) and before a first step."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hardware
from pipeline.config import TrainConfig
from pipeline.errors import pluralize
from pipeline.resources import model_shape, training_memory
from pipeline.resources.model_shape import Shape, format_bytes

if TYPE_CHECKING:
    import polars as pl

# Answers that an evaluation within a training generates at once, memory permitting: each is a row
# with a key-value cache.
ANSWERS_AT_ONCE = 64
CPU_ROWS = 8  # rows at once on a CPU: more rows mean more padding there, and are no faster
BINS = 8


@dataclass(frozen=True)
class Pace:
    """What an earlier training measured."""

    tokens: float  # a second, between evaluations
    evaluation: float  # seconds of one evaluation


def sequence_lengths(table: "pl.DataFrame", ids: str = "ids") -> list[int]:
    """Tokens of each training sequence: a prompt with one answer. `ids`: its columns' suffix."""
    prompt = table[f"prompt_{ids}"].list.len()
    answers = ["completion_ids", "token_ids", f"chosen_{ids}", f"rejected_{ids}"]
    lengths: list[int] = []
    for name in answers:
        if name in table.columns:
            lengths += (prompt + table[name].list.len()).to_list()
    return lengths


def build_histogram(lengths: list[int]) -> dict[str, Any]:
    width = -(-(max(lengths) + 1) // BINS)
    counts = [0] * BINS
    for length in lengths:
        counts[length // width] += 1
    return {"width": width, "counts": counts, "longest": max(lengths)}


def format_histogram(histogram: dict[str, Any]) -> str:
    counts = " ".join(map(str, histogram["counts"]))
    width, longest = histogram["width"], histogram["longest"]
    return f"lengths  {counts} in bins of {width} tokens, up to {longest}"


def choose_micro_batch(shape: Shape | None, cfg: TrainConfig, longest: int, world: int) -> int:
    """The `micro_batch` of the config; for `auto` the most rows that the estimate allows."""
    if cfg.runtime.micro_batch != "auto":
        return cfg.runtime.micro_batch
    if together := cfg.loss_group_per_process(world):
        return together
    each = cfg.batch // world
    if shape is None or not hardware.list_gpus():
        each = max(rows for rows in range(1, min(each, CPU_ROWS) + 1) if each % rows == 0)
    if shape is None:
        return each
    available, _ = available_memory(cfg)
    return training_memory.largest_micro_batch(
        shape, cfg, each, longest, world, available, gpu=bool(hardware.list_gpus())
    )


def estimate_needs(
    shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int
) -> training_memory.MemoryEstimate:
    """On the kind of device that is here."""
    gpu = bool(hardware.list_gpus())
    return training_memory.estimate_memory(shape, cfg, rows, longest, world, gpu)


def choose_answer_batch(shape: Shape, cfg: TrainConfig, most: int) -> int:
    """How many answers a policy in training generates at once: as many as fit between two steps."""
    training = _between_steps(shape, cfg)
    free = available_memory(cfg)[0] - training.between_steps
    return max(1, min(most, int(free // training.token.generated_answer)))


def estimate_evaluation(shape: Shape, cfg: TrainConfig) -> tuple[int, float]:
    """How many answers an evaluation generates at once, and its bytes if all of them are long."""
    training = _between_steps(shape, cfg)
    if not training.generates_answers:
        return 0, 0.0
    answers = choose_answer_batch(shape, cfg, min(ANSWERS_AT_ONCE, cfg.guards.prompts))
    return answers, training.between_steps + answers * training.token.generated_answer


def _between_steps(shape: Shape, cfg: TrainConfig) -> training_memory.ProcessMemory:
    gpus = len(hardware.list_gpus())
    world = cfg.runtime.world_size(gpus)
    return training_memory.ProcessMemory(shape, cfg, 0, 0, world, bool(gpus))


def available_memory(cfg: TrainConfig) -> tuple[float, str]:
    """Bytes that one process may fill, and the sum behind it in words.

    A share of what is free on its GPU, or of this process' part of the free main memory.
    """
    size, where = hardware.measure_memory()
    sharing = 1 if hardware.list_gpus() else cfg.runtime.count_processes(0)
    for_each = f", for each of {sharing} processes" if sharing > 1 else ""
    share = f"train.runtime.memory={cfg.runtime.memory:g}"
    source = f"{share} of {format_bytes(size)} {where}{for_each}"
    return size * cfg.runtime.memory / sharing, source


def describe_needs(
    shape: Shape | None,
    cfg: TrainConfig,
    longest: int,
    world: int,
    tokens: int | None,
    pace: Pace | None = None,
    steps: int = 0,
) -> Iterator[str]:
    """Lines on memory, disk and time. `pace` is None where nothing was measured."""
    if shape is None:
        yield "memory   not known: the model is not there yet, or of a kind without estimate"
        return
    rows = choose_micro_batch(shape, cfg, longest, world)
    needs = estimate_needs(shape, cfg, rows, longest, world)
    yield f"memory   {needs} for {pluralize(rows, 'row')} at once"
    answers, peak = estimate_evaluation(shape, cfg)
    if peak > needs.total:
        at_once = f"{pluralize(answers, 'answer')} at once"
        yield (
            f"         up to {format_bytes(peak)} where an evaluation generates {at_once}"
            " and all are long"
        )
    available, source = available_memory(cfg)
    yield f"         there are {format_bytes(available)} ({source})"
    disk = model_shape.estimate_disk(shape, cfg)
    checkpoints = f"two checkpoints of {format_bytes(disk.checkpoint)}"
    yield f"disk     {format_bytes(disk.peak)} at most, of it {checkpoints}"
    if tokens is None:
        return
    if duration := estimate_seconds(shape, cfg, tokens, world, pace, steps):
        yield _describe_time(cfg, duration, world, pace, steps)


def _describe_time(
    cfg: TrainConfig, duration: float, world: int, pace: Pace | None, steps: int
) -> str:
    price = cfg.runtime.gpu_hour
    money = ""
    if price is not None and hardware.list_gpus():
        money = f" · money {duration / 3600 * world * price:.2f}"
    source = "as measured before" if pace else "by the GPU's name"
    evaluations = count_evaluations(cfg.eval_every, steps)
    evaluating = evaluations * pace.evaluation if pace else 0.0
    of_it = ""
    if evaluating:
        of_it = f", of it {format_duration(evaluating)} in {pluralize(evaluations, 'evaluation')}"
    where = pluralize(world, "process")
    return f"time     {format_duration(duration)} on {where}, {source}{of_it}{money}"


def format_duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def count_evaluations(every: int, steps: int) -> int:
    """One before the first step, one every `every` steps, and one at the end."""
    return 1 + -(-steps // every)


def estimate_seconds(
    shape: Shape, cfg: TrainConfig, tokens: int, world: int, pace: Pace | None, steps: int
) -> float | None:
    if pace:
        return tokens / pace.tokens + count_evaluations(cfg.eval_every, steps) * pace.evaluation
    speed = hardware.estimate_speed()
    return model_shape.count_operations(shape, cfg, tokens) / speed / world if speed else None


def memory_shortage(
    shape: Shape, cfg: TrainConfig, rows: int, longest: int, world: int
) -> str | None:
    """The error where the training does not fit. `rows=0`: whatever it will read."""
    needs = estimate_needs(shape, cfg, rows, longest, world)
    available, source = available_memory(cfg)
    if needs.total <= available:
        return None
    if rows:
        needed = f"about {needs} for {pluralize(rows, 'row')} of {longest} tokens at once"
    else:
        needed = f"at least {needs}"
    fewer_rows = "train.runtime.micro_batch, " if rows > 1 and cfg.loss_group is None else ""
    return (
        f"train needs {needed}.\n"
        f"  There are {format_bytes(available)} ({source}).\n"
        f"  Lower {fewer_rows}limits, or give train.gradient_checkpointing=true,"
        " adapter=lora or qlora, or train.runtime.launch=fsdp2 on several GPUs;"
        " a higher train.runtime.memory overrules the estimate."
    )


def disk_shortage(shape: Shape, cfg: TrainConfig, folder: Path) -> str | None:
    needs = model_shape.estimate_disk(shape, cfg)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needs.peak <= free:
        return None
    return (
        f"train needs {format_bytes(needs.peak)} of disk: a checkpoint of"
        f" {format_bytes(needs.checkpoint)} and the one before it,"
        f" and {format_bytes(needs.models)} of models. {there} has {format_bytes(free)} free.\n"
        "  Free space (strop store --prune lists what no run needs), give another store=FOLDER,"
        " or adapter=lora."
    )
