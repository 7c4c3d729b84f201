"""Estimate what a training needs before any weight is read, and refuse what cannot fit.

It resolves `micro_batch: auto`, and lowers it where the estimate was wrong and memory ran out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Model, note_cost, write_json
from pipeline.config import OnlineTraining, TrainConfig
from pipeline.errors import StageError, UserError, pluralize
from pipeline.progress import print_progress, print_warning
from pipeline.resources import model_shape, training_fit
from pipeline.resources.training_fit import TrainingFit, TrainingRows

if TYPE_CHECKING:
    import polars as pl

# In scratch: a resumed training keeps this number, whatever memory is free by then.
MICRO_BATCH_FILE = "micro_batch.json"


class OutOfMemory(Exception):
    """A process of this training could not allocate device memory."""


def check_fit(
    cfg: TrainConfig, init: Model, rows: "dict[str, pl.DataFrame]", world: int, out: Path
) -> TrainingFit:
    """Print and note what this training takes. Raise where it cannot fit."""
    shape = model_shape.read_shape(Path(init.weights))
    lengths = training_fit.sequence_lengths(rows["train"])
    if isinstance(cfg, OnlineTraining):
        lengths = training_fit.longest_lengths(cfg, rows["train"])
    rehearsed = training_fit.sequence_lengths(rows["rehearsal"]) if cfg.rehearsal else []
    count = len(lengths) // cfg.answers_per_row
    reads = training_fit.count_training(cfg, count, lengths, rehearsed)
    fit = training_fit.fit_training(shape, _keep_micro_batch(cfg, world, out), reads, world)
    _announce(fit, reads, out)
    if fault := fit.explain_shortage(out):
        raise UserError(fault)
    if cfg.runtime.micro_batch == "auto":
        write_json(out / "scratch" / MICRO_BATCH_FILE, fit.micro_batch)
    return fit


def _announce(fit: TrainingFit, reads: TrainingRows, out: Path) -> None:
    histogram, amount = training_fit.build_histogram(reads.lengths), reads.describe(fit.cfg.batch)
    if few := fit.cfg.explain_few_steps(reads.steps):
        print_warning(f"train: {few}.")
    counts = {"rows": reads.count, "steps": reads.steps, "tokens": reads.tokens}
    write_json(out / "ahead.json", {**counts, "lengths": histogram})
    print_progress(f"train {amount} · {fit.micro_batch} at once")
    log_lines(f"ahead    {amount}", training_fit.format_histogram(histogram), *fit.describe())
    rows = "answers" if fit.cfg.is_online else "pairs"
    figures = {"steps": reads.steps, "tokens": reads.tokens, rows: reads.count}
    note_cost(out, micro_batch=fit.micro_batch, **figures)
    if fit.shape and fit.memory:
        gib = round(fit.memory.total / model_shape.GIB, 3)
        note_cost(out, parameters=fit.shape.parameters, memory_estimate_gib=gib)


def _keep_micro_batch(cfg: TrainConfig, world: int, out: Path) -> TrainConfig:
    """For `auto`, the number of an interrupted attempt."""
    file = out / "scratch" / MICRO_BATCH_FILE
    if cfg.runtime.micro_batch == "auto" and file.exists():
        known: int = json.loads(file.read_text())
        # The batch may be shared by another number of processes than before.
        if cfg.batch // world % known == 0:
            return with_micro_batch(cfg, known)
    return cfg


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
                knob = f"{cfg.knob}.runtime.micro_batch={fewer} or auto, "
                smaller = knob if fewer and cfg.loss_group is None else ""
                raise StageError(
                    f"train: the device's memory ran out with {pluralize(rows, 'row')} at once.\n"
                    f"  Give {smaller}{cfg.knob}.gradient_checkpointing=true, lower limits, or"
                    f" {cfg.adapter_mount}=lora; the same command resumes from the newest"
                    " checkpoint."
                ) from error
        log_lines(f"memory ran out with {pluralize(rows, 'row')} at once: {fewer} from here on")
        cfg = with_micro_batch(cfg, fewer)
        write_json(out / "scratch" / MICRO_BATCH_FILE, fewer)
        note_cost(out, micro_batch=fewer)


def log_lines(*lines: str) -> None:
    """Print to the log now. The driver shows these lines on the screen when the Step is done."""
    print("\n".join(f"│ {line}" for line in lines), file=sys.stderr, flush=True)
