"""What one training takes on this machine: rows at once, memory, disk and time.

`fit_training` computes it once for each training. A plan, the preflight and `train` itself read it.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline import hardware
from pipeline.config import OnlineTraining, TrainConfig
from pipeline.errors import pluralize
from pipeline.resources import model_shape
from pipeline.resources.model_shape import DiskNeeds, Shape, format_bytes
from pipeline.resources.training_memory import MemoryEstimate, ProcessMemory

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
    rest: float  # seconds outside its loop: opening, checking and saving the model
    row: float  # tokens of a row


@dataclass(frozen=True)
class TrainingRows:
    """What a training reads."""

    count: int  # pairs, or single answers for KTO and online training
    steps: int
    tokens: int  # in all epochs, with rehearsed demonstrations
    longest: int
    lengths: list[int]  # tokens of each sequence; none before the pairs are built

    def describe(self, batch: int) -> str:
        bound = "" if self.lengths else "at most "
        size = f"{pluralize(self.count, 'row', grouped=True)} · {self.tokens:,} tokens"
        return f"{bound}{pluralize(self.steps, 'step')} of {batch} · {size}"


def count_training(
    cfg: TrainConfig, count: int, lengths: list[int], rehearsed: Sequence[int] = ()
) -> TrainingRows:
    """Sequences of unknown length count as `max_length`, and demonstrations as the mean answer.

    `rehearsed`: tokens of each demonstration, where they are known.
    """
    steps = model_shape.count_steps(cfg, count)
    sequences = count * cfg.answers_per_row
    total = sum(lengths) if lengths else sequences * cfg.max_length
    mean = fmean(rehearsed) if rehearsed else total / max(sequences, 1)
    tokens = round(cfg.epochs * total + steps * cfg.rehearsal_rows * mean)
    longest = max([*lengths, *rehearsed], default=cfg.max_length)
    return TrainingRows(count, steps, tokens, longest, lengths)


def sequence_lengths(table: "pl.DataFrame", ids: str = "ids") -> list[int]:
    """Tokens of each training sequence: a prompt with one answer. `ids`: its columns' suffix."""
    prompt = table[f"prompt_{ids}"].list.len()
    answers = ["completion_ids", "token_ids", f"chosen_{ids}", f"rejected_{ids}"]
    lengths: list[int] = []
    for name in answers:
        if name in table.columns:
            lengths += (prompt + table[name].list.len()).to_list()
    return lengths


def longest_lengths(cfg: OnlineTraining, prompts: "pl.DataFrame") -> list[int]:
    """Tokens of the answers that are to be sampled, at most: of every answer to each prompt."""
    longest = (prompts["prompt_ids"].list.len() + cfg.request.limits.completion).to_list()
    return [length for length in longest for _ in range(cfg.setting.n)]


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


# ── the fit ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TrainingFit:
    """One training on the devices that are here."""

    cfg: TrainConfig
    shape: Shape | None  # None: the model is not there yet, or of a kind without estimate
    rows: TrainingRows | None  # None before prompts and pairs are counted
    world: int  # processes on all machines
    gpu: bool
    available: float  # bytes that one process may fill
    source: str  # the sum behind `available`, in words
    pace: Pace | None  # None: nothing was measured

    @cached_property
    def micro_batch(self) -> int:
        """The config's number; for `auto` the most rows that the estimate allows."""
        if self.cfg.runtime.micro_batch != "auto":
            return self.cfg.runtime.micro_batch
        if together := self.cfg.loss_group_per_process(self.world):
            return together
        each = max(1, self.cfg.batch // self.world)  # a plan may name more processes than pairs
        if self.shape is None or not self.gpu:
            each = max(rows for rows in _list_divisors(each) if rows <= CPU_ROWS)
        if self.shape is None:
            return each
        sizes = {rows: self.estimate_process(rows).peak.total for rows in _list_divisors(each)}
        # Where even one row does not fit, the shortage is explained for one.
        return max((rows for rows in sizes if sizes[rows] <= self.available), default=1)

    def estimate_process(self, rows: int) -> ProcessMemory:
        assert self.shape
        longest = self.rows.longest if self.rows else self.cfg.max_length
        return ProcessMemory(self.shape, self.cfg, rows, longest, self.world, self.gpu)

    @cached_property
    def process(self) -> ProcessMemory | None:
        return self.estimate_process(self.micro_batch) if self.shape else None

    @cached_property
    def memory(self) -> MemoryEstimate | None:
        """The fullest moment of a process, for rows of the greatest length."""
        return self.process.peak if self.process else None

    @cached_property
    def disk(self) -> DiskNeeds | None:
        return model_shape.estimate_disk(self.shape, self.cfg) if self.shape else None

    @property
    def evaluations(self) -> int:
        return count_evaluations(self.cfg.eval_every, self.rows.steps if self.rows else 0)

    @cached_property
    def seconds(self) -> float | None:
        """Evaluations included; None where rows, model or speed are not known."""
        if self.shape is None or self.rows is None:
            return None
        if self.pace:
            tokens: float = self.rows.tokens
            if not self.rows.lengths:  # then each row counts as the longest one
                tokens = min(tokens, self.rows.count * self.cfg.epochs * self.pace.row)
            evaluating = self.evaluations * self.pace.evaluation
            return self.pace.rest + tokens / self.pace.tokens + evaluating
        if self.cfg.is_online:  # most of its time is sampling, which only a measurement knows
            return None
        speed = hardware.estimate_speed()
        operations = model_shape.count_operations(self.shape, self.cfg, self.rows.tokens)
        return operations / speed / self.world if speed else None

    # ── in words ──────────────────────────────────────────────────────────────────────────────────

    def describe(self) -> Iterator[str]:
        """Lines on memory, disk and time."""
        if not (self.process and self.memory and self.disk):
            yield "memory   not known: the model is not there yet, or of a kind without estimate"
            return
        yield f"memory   {self.memory} for {pluralize(self.micro_batch, 'row')} at once"
        yield from self._describe_evaluation(self.process, self.memory.total)
        yield f"         there are {format_bytes(self.available)} ({self.source})"
        checkpoints = f"two checkpoints of {format_bytes(self.disk.checkpoint)}"
        yield f"disk     {format_bytes(self.disk.peak)} at most, of it {checkpoints}"
        if self.seconds:
            yield self._describe_time(self.seconds)

    def _describe_evaluation(self, process: ProcessMemory, training: float) -> Iterator[str]:
        """Where an evaluation takes more than a step does: all its answers are of the longest."""
        if not process.generates_answers:
            return
        most = min(ANSWERS_AT_ONCE, self.cfg.guards.prompts)
        answers = process.count_answers_at_once(self.available, most)
        peak = process.between_steps + answers * process.token.generated_answer
        if peak > training:
            at_once = f"{pluralize(answers, 'answer')} at once"
            yield (
                f"         up to {format_bytes(peak)} where an evaluation generates {at_once}"
                " and all are long"
            )

    def _describe_time(self, seconds: float) -> str:
        price = self.cfg.runtime.gpu_hour
        money = ""
        if price is not None and self.gpu:
            money = f" · money {seconds / 3600 * self.world * price:.2f}"
        source = "as measured before" if self.pace else "by the GPU's name"
        of_it = ""
        if self.pace and self.pace.evaluation:
            evaluating = format_duration(self.evaluations * self.pace.evaluation)
            of_it = f", of it {evaluating} in {pluralize(self.evaluations, 'evaluation')}"
        where = pluralize(self.world, "process")
        return f"time     {format_duration(seconds)} on {where}, {source}{of_it}{money}"

    # ── what does not fit ─────────────────────────────────────────────────────────────────────────

    def explain_shortage(self, folder: Path) -> str | None:
        """The error where memory, or the disk of `folder`, is too small."""
        return self.explain_memory_shortage() or self.explain_disk_shortage(folder)

    def explain_memory_shortage(self) -> str | None:
        if not self.process:
            return None
        # Pairs that are not built yet may be short: then only what every row needs is certain.
        is_known = self.rows and self.rows.lengths
        process = self.process if is_known else self.estimate_process(0)
        needs, rows = process.peak, process.rows
        if needs.total <= self.available:
            return None
        at_once = f"{pluralize(rows, 'row')} of {process.longest} tokens at once"
        needed = f"about {needs} for {at_once}" if rows else f"at least {needs}"
        knob, lowers_rows = self.cfg.knob, rows > 1 and self.cfg.loss_group is None
        fewer_rows = f"{knob}.runtime.micro_batch, " if lowers_rows else ""
        return (
            f"train needs {needed}.\n"
            f"  There are {format_bytes(self.available)} ({self.source}).\n"
            f"  Lower {fewer_rows}limits, or give {knob}.gradient_checkpointing=true,"
            f" {self.cfg.adapter_mount}=lora or qlora, or {knob}.runtime.launch=fsdp2 on several"
            f" GPUs; a higher {knob}.runtime.memory overrules the estimate."
        )

    def explain_disk_shortage(self, folder: Path) -> str | None:
        if not self.disk:
            return None
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        if self.disk.peak <= free:
            return None
        return (
            f"train needs {format_bytes(self.disk.peak)} of disk: a checkpoint of"
            f" {format_bytes(self.disk.checkpoint)} and the one before it,"
            f" and {format_bytes(self.disk.models)} of models."
            f" {there} has {format_bytes(free)} free.\n"
            "  Free space (strop store --prune lists what no run needs), give another store=FOLDER,"
            f" or {self.cfg.adapter_mount}=lora."
        )


def fit_training(
    shape: Shape | None,
    cfg: TrainConfig,
    rows: TrainingRows | None,
    world: int,
    pace: Pace | None = None,
) -> TrainingFit:
    """Of `world` processes like this one. Asks the devices here what is free."""
    gpu = bool(hardware.list_gpus())
    return TrainingFit(cfg, shape, rows, world, gpu, *measure_available(cfg), pace)


def _list_divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def measure_available(cfg: TrainConfig) -> tuple[float, str]:
    """Bytes that one process may fill, and the sum behind it in words.

    A share of what is free on its GPU, or of this process' part of the free main memory.
    """
    size, where = hardware.measure_memory()
    sharing = 1 if hardware.list_gpus() else cfg.runtime.count_processes(0)
    for_each = f", for each of {sharing} processes" if sharing > 1 else ""
    share = f"{cfg.knob}.runtime.memory={cfg.runtime.memory:g}"
    source = f"{share} of {format_bytes(size)} {where}{for_each}"
    return size * cfg.runtime.memory / sharing, source


def choose_answer_batch(shape: Shape, cfg: TrainConfig, most: int) -> int:
    """How many answers a policy in training generates at once: as many as fit between two steps.

    Each process asks this for its own device, once the training's state is there.
    """
    gpus = len(hardware.list_gpus())
    process = ProcessMemory(shape, cfg, 0, 0, cfg.runtime.world_size(gpus), bool(gpus))
    return process.count_answers_at_once(measure_available(cfg)[0], most)


def count_evaluations(every: int, steps: int) -> int:
    """One before the first step, one every `every` steps, and one at the end."""
    return 1 + -(-steps // every)


def format_duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
