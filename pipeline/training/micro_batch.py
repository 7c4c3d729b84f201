"""Before the first step, and before any weight is read: what the training will take, refused where it is too much.

It settles `micro_batch: auto`, and takes fewer where the estimate was wrong and memory ran out.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.artifacts import Model, note_cost, write_json
from pipeline.config import TrainConfig
from pipeline.errors import StageError, UserError, many
from pipeline.progress import SIGN
from pipeline.resources import model_shape, training_fit

if TYPE_CHECKING:
    import polars as pl

SETTLED = "micro_batch.json"  # in scratch: what a resumed training goes on with, whatever memory is free by then


class OutOfMemory(Exception):
    """A process of this training could not get the device memory that it asked for."""


def look_ahead(
    cfg: TrainConfig, init: Model, rows: "dict[str, pl.DataFrame]", world: int, out: Path
) -> TrainConfig:
    """Says what it will take and refuses what cannot be; answers the config with a number for `micro_batch`."""
    table, shape = rows["train"], model_shape.read_shape(Path(init.weights))
    lengths, steps, tokens = (
        training_fit.sequence_lengths(table),
        model_shape.count_steps(cfg, table.height),
        tokens_read(cfg, rows),
    )
    longest = max(
        training_fit.sequence_lengths(rows["rehearsal"]) + lengths if cfg.rehearsal else lengths
    )
    found = training_fit.build_histogram(lengths)
    if few := cfg.few_steps(steps):
        print(f"! train: {few}.", file=sys.stderr, flush=True)
    write_json(
        out / "ahead.json",
        {"rows": table.height, "steps": steps, "tokens": tokens, "lengths": found},
    )
    auto, cfg = (
        cfg.runtime.micro_batch == "auto",
        with_rows(cfg, _settled(cfg, shape, longest, world, out)),
    )
    at_once = cfg.runtime.at_once
    first = f"{many(steps, 'step')} of {cfg.batch} · {many(table.height, 'row', grouped=True)} · {tokens:,} tokens"
    print(SIGN, "train", first, f"· {at_once} at once", file=sys.stderr)
    say(
        f"ahead    {first}",
        training_fit.format_histogram(found),
        *training_fit.describe_needs(shape, cfg, longest, world, tokens),
    )
    note_cost(out, micro_batch=at_once, steps=steps)
    if shape:
        note_cost(out, parameters=shape.parameters)
        takes = training_fit.estimate_needs(shape, cfg, at_once, longest, world)
        note_cost(out, memory_estimate_gib=round(takes.total / model_shape.GIB, 3))
        short = training_fit.memory_shortage(
            shape, cfg, at_once, longest, world
        ) or training_fit.disk_shortage(shape, cfg, out)
        if short:
            raise UserError(short)
    if auto:
        write_json(out / "scratch" / SETTLED, at_once)
    return cfg


def tokens_read(cfg: TrainConfig, rows: "dict[str, pl.DataFrame]") -> int:
    """By the whole training, demonstrations beside the pairs too."""
    beside = (
        fmean(training_fit.sequence_lengths(rows["rehearsal"])) * cfg.rehearsed
        if cfg.rehearsal
        else 0.0
    )
    return round(
        cfg.epochs * sum(training_fit.sequence_lengths(rows["train"]))
        + beside * model_shape.count_steps(cfg, rows["train"].height)
    )


def _settled(
    cfg: TrainConfig, shape: model_shape.Shape | None, longest: int, world: int, out: Path
) -> int:
    known = out / "scratch" / SETTLED
    if cfg.runtime.micro_batch == "auto" and known.exists():
        found: int = json.loads(known.read_text())
        if (
            cfg.batch // world % found == 0
        ):  # fewer processes than before may share the batch otherwise
            return found
    return training_fit.choose_micro_batch(shape, cfg, longest, world)


def with_rows(cfg: TrainConfig, rows: int) -> TrainConfig:
    return cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"micro_batch": rows})})


def in_memory(
    cfg: TrainConfig, auto: bool, out: Path, train: Callable[[TrainConfig], None]
) -> None:
    """Trains; where memory runs out and the number was ours, again with fewer rows, from the newest checkpoint."""
    while True:
        try:
            return train(cfg)
        except OutOfMemory as error:
            rows = cfg.runtime.at_once
            fewer = max((n for n in range(1, rows) if rows % n == 0), default=0)
            if not fewer or not auto or cfg.together is not None:
                instead = (
                    f"train.runtime.micro_batch={fewer} or auto, "
                    if fewer and cfg.together is None
                    else ""
                )
                raise StageError(
                    f"train: the device's memory ran out with {many(rows, 'row')} at once.\n"
                    f"  Give {instead}train.gradient_checkpointing=true, lower limits, or adapter@train.adapter=lora; "
                    f"the same command goes on from the newest checkpoint."
                ) from error
        say(f"memory ran out with {many(rows, 'row')} at once: {fewer} from here on")
        cfg = with_rows(cfg, fewer)
        write_json(out / "scratch" / SETTLED, fewer)
        note_cost(out, micro_batch=fewer)


def say(*lines: str) -> None:
    """Into the log at once, and on the screen when the Step is done."""
    print("\n".join(f"│ {line}" for line in lines), file=sys.stderr, flush=True)
