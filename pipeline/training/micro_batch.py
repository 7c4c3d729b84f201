"""Estimate what a training needs before any weight is read, and refuse what cannot fit.

It resolves `micro_batch: auto`, and lowers it where the estimate was wrong and memory ran out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.artifacts import Model, note_cost, write_json
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError, pluralize
from pipeline.progress import print_progress, print_warning
from pipeline.resources import model_shape, training_fit

if TYPE_CHECKING:
    import polars as pl

# In scratch: a resumed training keeps this number, whatever memory is free by then.
MICRO_BATCH_FILE = "micro_batch.json"


class OutOfMemory(Exception):
    """A process of this training could not allocate device memory."""


def choose_micro_batch(
    cfg: TrainConfig, init: Model, rows: "dict[str, pl.DataFrame]", world: int, out: Path
) -> TrainConfig:
    """The config with a number as `micro_batch`. Print the estimate; raise where it cannot fit."""
    table, shape = rows["train"], model_shape.read_shape(Path(init.weights))
    lengths, steps = (
        training_fit.sequence_lengths(table),
        model_shape.count_steps(cfg, table.height),
    )
    tokens = count_tokens(cfg, rows)
    longest = max(
        training_fit.sequence_lengths(rows["rehearsal"]) + lengths if cfg.rehearsal else lengths
    )
    histogram = training_fit.build_histogram(lengths)
    if few := cfg.explain_few_steps(steps):
        print_warning(f"train: {few}.")
    estimate = {"rows": table.height, "steps": steps, "tokens": tokens, "lengths": histogram}
    write_json(out / "ahead.json", estimate)
    auto = cfg.runtime.micro_batch == "auto"
    cfg = with_micro_batch(cfg, _find_micro_batch(cfg, shape, longest, world, out))
    at_once = cfg.runtime.per_device
    height = pluralize(table.height, "row", grouped=True)
    amount = f"{pluralize(steps, 'step')} of {cfg.batch} · {height} · {tokens:,} tokens"
    print_progress(f"train {amount} · {at_once} at once")
    log_lines(
        f"ahead    {amount}",
        training_fit.format_histogram(histogram),
        *training_fit.describe_needs(shape, cfg, longest, world, tokens),
    )
    note_cost(out, micro_batch=at_once, steps=steps)
    if shape:
        note_cost(out, parameters=shape.parameters)
        takes = training_fit.estimate_needs(shape, cfg, at_once, longest, world)
        note_cost(out, memory_estimate_gib=round(takes.total / model_shape.GIB, 3))
        short = training_fit.memory_shortage(shape, cfg, at_once, longest, world)
        short = short or training_fit.disk_shortage(shape, cfg, out)
        if short:
            raise UserError(short)
    if auto:
        write_json(out / "scratch" / MICRO_BATCH_FILE, at_once)
    return cfg


def count_tokens(cfg: TrainConfig, rows: "dict[str, pl.DataFrame]") -> int:
    """Tokens that the whole training reads, those of rehearsed demonstrations included."""
    pairs = cfg.epochs * sum(training_fit.sequence_lengths(rows["train"]))
    if not cfg.rehearsal:
        return round(pairs)
    per_step = fmean(training_fit.sequence_lengths(rows["rehearsal"])) * cfg.rehearsal_rows
    return round(pairs + per_step * model_shape.count_steps(cfg, rows["train"].height))


def _find_micro_batch(
    cfg: TrainConfig, shape: model_shape.Shape | None, longest: int, world: int, out: Path
) -> int:
    """The number of an interrupted attempt, or what fits into memory by the estimate."""
    file = out / "scratch" / MICRO_BATCH_FILE
    if cfg.runtime.micro_batch == "auto" and file.exists():
        known: int = json.loads(file.read_text())
        # The batch may be shared by another number of processes than before.
        if cfg.batch // world % known == 0:
            return known
    return training_fit.choose_micro_batch(shape, cfg, longest, world)


def with_micro_batch(cfg: TrainConfig, rows: int) -> TrainConfig:
    return cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"micro_batch": rows})})


def train_within_memory(
    cfg: TrainConfig, auto: bool, out: Path, train: Callable[[TrainConfig], None]
) -> None:
    """Train. Where memory runs out under `micro_batch: auto`, resume with fewer rows per pass."""
    while True:
        try:
            return train(cfg)
        except OutOfMemory as error:
            rows = cfg.runtime.per_device
            fewer = max((n for n in range(1, rows) if rows % n == 0), default=0)
            if not fewer or not auto or cfg.loss_group is not None:
                knob = f"train.runtime.micro_batch={fewer} or auto, "
                smaller = knob if fewer and cfg.loss_group is None else ""
                raise StageError(
                    f"train: the device's memory ran out with {pluralize(rows, 'row')} at once.\n"
                    f"  Give {smaller}train.gradient_checkpointing=true, lower limits, or "
                    f"adapter=lora; the same command resumes from the newest "
                    f"checkpoint."
                ) from error
        log_lines(f"memory ran out with {pluralize(rows, 'row')} at once: {fewer} from here on")
        cfg = with_micro_batch(cfg, fewer)
        write_json(out / "scratch" / MICRO_BATCH_FILE, fewer)
        note_cost(out, micro_batch=fewer)


def log_lines(*lines: str) -> None:
    """Print to the log now. The driver shows these lines on the screen when the Step is done."""
    print("\n".join(f"│ {line}" for line in lines), file=sys.stderr, flush=True)
