"""Callbacks for every trainer: metrics, finite numbers, complete checkpoints, a line of progress.

They know nothing of the objective. A trainer that uses them saves by steps, sets no
`save_total_limit` (the ledger removes old checkpoints) and has `logging_nan_inf_filter=False`.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.artifacts import note_cost, write_json, write_text
from pipeline.errors import StageError
from pipeline.progress import Progress, format_clock, print_phase

# These differ between attempts: wall-clock times, and sums that restart when training resumes.
UNSTABLE = (
    "_runtime",
    "_per_second",
    "total_flos",
    "train_loss",
    "num_tokens",
    "num_input_tokens_seen",
    "step_time",
)


class MetricsLog(TrainerCallback):
    """Writes `metrics.jsonl`: a line per log entry, the same lines if training is interrupted."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            drop_lines_after(self.path, state.global_step)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {
            name: value for name, value in (logs or {}).items() if not name.endswith(UNSTABLE)
        }
        if not state.is_world_process_zero or not figures.keys() - {"epoch"}:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **figures}, allow_nan=False) + "\n")


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed training repeats; at step 0 all of them."""
    lines = path.read_text().splitlines() if step and path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _read_step(line) <= step))


def _read_step(line: str) -> float:
    """The step of a line. One that a kill cut short counts as later than every step."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


class FiniteGuard(TrainerCallback):
    """Stops at the first loss or gradient norm that is NaN or infinite, before a checkpoint has it.

    It makes the trainer log every step, so that none passes unseen. It comes before `MetricsLog`.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("loss", "grad_norm", "eval_loss", "eval_chosen_logp", "eval_kl"):
            if not math.isfinite(value := (logs or {}).get(name, 0.0)):
                raise StageError(
                    f"{name} is {value} at step {state.global_step}: training stopped and nothing "
                    f"is published.\n"
                    f"  Lower the learning rate or clip, or give dtype=float32; at step 0 or 1 the "
                    f"model that training starts from may be broken itself."
                )


class CheckpointLedger(TrainerCallback):
    """Lists the complete checkpoints in `folder`, each file with its size.

    Training does not resume from any other checkpoint.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "checkpoints.json"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Resumed at its last step, a Trainer takes one more where epochs is a fraction.
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes the state of its random generators
        if not state.is_world_process_zero:
            return
        newest = self.folder / f"checkpoint-{state.global_step}"
        write_json(self.file, {newest.name: _sync_and_measure(newest)})
        for path in self.folder.glob("checkpoint-*"):
            if path != newest:
                shutil.rmtree(path)

    def find_newest(self) -> Path | None:
        """The newest complete checkpoint. Name the incomplete ones on the screen."""
        listed = json.loads(self.file.read_text()) if self.file.exists() else {}
        newest = None
        for path in sorted(self.folder.glob("checkpoint-*"), key=_step_number, reverse=True):
            if path.name not in listed or not _is_complete(path, listed[path.name]):
                print(
                    f"{path.name} is not complete (a kill cut it short): ignored", file=sys.stderr
                )
            elif newest is None:
                newest = path
        return newest


def _sync_and_measure(folder: Path) -> dict[str, int]:
    """Each file's size, after forcing it to disk: a size in the ledger must mean bytes on disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _is_complete(folder: Path, sizes: dict[str, int]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _step_number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


SHOWN_METRICS = {
    "loss": ("loss", "{:.4g}"),
    "rewards/margins": ("margin", "{:.3g}"),
    "rewards/accuracies": ("accuracy", "{:.2f}"),
    "reward": ("reward", "{:.3g}"),
}


def report_phase(text: str) -> None:
    """Print what a training does before its first step, once for all its processes."""
    if os.environ.get("RANK", "0") == "0":
        print_phase(f"train: {text}")


class ProgressLine(TrainerCallback):
    """`▸ train 12/40 steps · loss 0.652 · margin 0.09 · accuracy 0.61 · tok/s 2100 · 0:41 left`.

    Evaluations are timed apart from steps. The time left includes the evaluations to come.
    """

    def __init__(self, stage: str, out: Path | None = None):
        self.stage, self.out = stage, out

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._line = Progress(self.stage, state.max_steps, "steps")
        self._line.resume_at(state.global_step)
        self._evaluation: Progress | None = None
        self._started = self._lap_start = time.monotonic()
        self._step_seconds: list[float] = []
        self._evaluation_seconds: list[float] = []
        self._evaluates = False
        self._kl: dict[str, str] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_evaluation()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_seconds.append(self._end_lap())

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._evaluation is None:
            what = f"{self.stage}, evaluation at step {state.global_step}:"
            self._evaluation = Progress(what, len(kwargs["eval_dataloader"]), "dev batches")
        if state.is_world_process_zero:
            self._evaluation.advance()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Online training has no batches before this; the guards' answers come after it."""
        self._evaluates = True

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "eval_kl" in logs:
            self._kl = {"kl": f"{logs['eval_kl']:.3g}"}  # of the last evaluation
        if not state.is_world_process_zero or "loss" not in logs:
            return
        facts = dict(self._kl)
        for key, (name, form) in SHOWN_METRICS.items():
            if key in logs:
                facts[name] = form.format(logs[key])
        if "num_tokens" in logs:
            facts["tok/s"] = f"{logs['num_tokens'] / (time.monotonic() - self._started):.0f}"
        self._line.time_left = self._time_left(args, state)
        self._line.advance(state.global_step - self._line.done, **facts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_evaluation()
        if self.out and self._step_seconds and state.is_world_process_zero:
            loop, evaluating = time.monotonic() - self._started, sum(self._evaluation_seconds)
            # With what passes between two steps, such as saving a checkpoint.
            step = (loop - evaluating) / len(self._step_seconds)
            note_cost(self.out, loop_seconds=loop, step_seconds=step)
            if evaluating:
                note_cost(self.out, evaluation_seconds=fmean(self._evaluation_seconds))

    def _end_lap(self) -> float:
        before, self._lap_start = self._lap_start, time.monotonic()
        return self._lap_start - before

    def _end_evaluation(self) -> None:
        seconds = self._end_lap()
        if self._evaluates:
            self._evaluation_seconds.append(seconds)
        self._evaluates, self._evaluation = False, None

    def _time_left(self, args: Any, state: Any) -> str | None:
        if not self._step_seconds:
            return None
        seconds = (state.max_steps - state.global_step) * fmean(self._step_seconds)
        every = args.eval_steps if args.eval_strategy == "steps" else 0
        if every and self._evaluation_seconds:
            evaluations = state.max_steps // every - state.global_step // every
            seconds += evaluations * self._evaluation_seconds[-1]
        return format_clock(seconds)
