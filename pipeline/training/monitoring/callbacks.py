"""What watches over every trainer: metrics, finite numbers, whole checkpoints, a line of progress.

Each is a callback of transformers' Trainer and knows nothing of the objective. A trainer that takes them saves by
steps, sets no `save_total_limit` (the ledger removes old checkpoints) and `logging_nan_inf_filter=False`.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.artifacts import note_cost, write_json, write_text
from pipeline.errors import StageError
from pipeline.progress import Progress, format_clock, print_phase

# Differ from attempt to attempt: wall-clock figures, and sums that start again when training resumes.
UNSTABLE = (
    "_runtime",
    "_per_second",
    "total_flos",
    "train_loss",
    "num_tokens",
    "num_input_tokens_seen",
)


class MetricsLog(TrainerCallback):
    """`metrics.jsonl`: one line for each log entry, the same lines whether training was interrupted or not."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            keep_until(self.path, state.global_step)

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


def keep_until(path: Path, step: int) -> None:
    """Lines of steps that will be taken again go; a training that starts has none."""
    lines = path.read_text().splitlines() if step and path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    """The step of an entry; a line cut short by a kill belongs to no step that was kept."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


class FiniteGuard(TrainerCallback):
    """Stops at the first loss or gradient norm that is not a number, before any such checkpoint is written.

    It has every step logged: a figure seen only every tenth step would let nine pass. Comes before `MetricsLog`.
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
                    f"{name} is {value} at step {state.global_step}: training stopped and nothing is published.\n"
                    f"  Lower the learning rate or clip, or give dtype=float32; at step 0 or 1 the model that training "
                    f"starts from may be broken itself."
                )


class CheckpointLedger(TrainerCallback):
    """Which checkpoints in `folder` are whole: listed here, every file at its size. Others are not resumed from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "checkpoints.json"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A Trainer resumed at its very last step would train one more when epochs is a fraction.
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes the state of its own generators
        if not state.is_world_process_zero:
            return
        newest = self.folder / f"checkpoint-{state.global_step}"
        write_json(self.file, {newest.name: _sizes(newest)})
        for path in self.folder.glob("checkpoint-*"):
            if path != newest:
                shutil.rmtree(path)

    def newest_whole(self) -> Path | None:
        listed = json.loads(self.file.read_text()) if self.file.exists() else {}
        found = sorted(self.folder.glob("checkpoint-*"), key=_number, reverse=True)
        whole = [
            path for path in found if path.name in listed and _is_whole(path, listed[path.name])
        ]
        for path in found:
            if path not in whole:
                print(
                    f"{path.name} is not whole (its writing was cut off): ignored", file=sys.stderr
                )
        return whole[0] if whole else None


def _sizes(folder: Path) -> dict[str, int]:
    """Every file with its size, forced to the disk first: a size in the ledger must mean bytes that are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _is_whole(folder: Path, sizes: dict[str, int]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size
        for name, size in sizes.items()
    )


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


SHOWN = {
    "loss": ("loss", "{:.4g}"),
    "rewards/margins": ("margin", "{:.3g}"),
    "rewards/accuracies": ("accuracy", "{:.2f}"),
}


def phase(text: str) -> None:
    """What a training does before its first step, said by one of its processes."""
    if os.environ.get("RANK", "0") == "0":
        print_phase(f"train: {text}")


class ProgressLine(TrainerCallback):
    """`▸ train 12/40 steps · loss 0.652 · margin 0.09 · accuracy 0.61 · tok/s 2100 · 0:41 left`.

    Looks at dev rows take time of their own: it is measured apart, and those to come are counted in what is left.
    """

    def __init__(self, what: str, out: Path | None = None):
        self.what, self.out = what, out

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._line = Progress(self.what, state.max_steps, "steps")
        self._line.resume_at(state.global_step)
        self._look: Progress | None = None
        self._started = self._mark = time.monotonic()
        self._steps: list[float] = []  # seconds of each
        self._looks: list[float] = []
        self._kl: dict[str, str] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_look()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.append(self._lap())

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._look is None:
            what = f"{self.what}, look at step {state.global_step}:"
            self._look = Progress(what, len(kwargs["eval_dataloader"]), "dev batches")
        if state.is_world_process_zero:
            self._look.advance()

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
            self._kl = {"kl": f"{logs['eval_kl']:.3g}"}  # of the last look
        if not state.is_world_process_zero or "loss" not in logs:
            return
        facts = self._kl | {
            name: form.format(logs[key]) for key, (name, form) in SHOWN.items() if key in logs
        }
        if "num_tokens" in logs:
            facts["tok/s"] = f"{logs['num_tokens'] / (time.monotonic() - self._started):.0f}"
        self._line.time_left = self._left(args, state)
        self._line.advance(state.global_step - self._line.done, **facts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._end_look()
        if self.out and self._looks and state.is_world_process_zero:
            note_cost(self.out, look_seconds=round(sum(self._looks) / len(self._looks), 2))

    def _lap(self) -> float:
        before, self._mark = self._mark, time.monotonic()
        return self._mark - before

    def _end_look(self) -> None:
        seconds = self._lap()
        if self._look is not None:
            self._looks.append(seconds)
            self._look = None

    def _left(self, args: Any, state: Any) -> str | None:
        if not self._steps:
            return None
        steps = (state.max_steps - state.global_step) * sum(self._steps) / len(self._steps)
        every = args.eval_steps if args.eval_strategy == "steps" else 0
        looks = (
            state.max_steps // every - state.global_step // every if every and self._looks else 0
        )
        return format_clock(steps + looks * self._looks[-1] if looks else steps)
