"""Shows a training in W&B or TensorBoard as it runs: what `metrics.jsonl` and `answers.jsonl` say, as they say it.

What it writes lies in the run's folder, which `step.json` names, never in the artifact. It reads those two files, so
that a resumed training is shown from its first step. Whatever fails here is said once, and training goes on.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from pipeline.artifacts import STEP_FILE
from pipeline.config import TrackerConfig, Wandb
from pipeline.content import without_runtime

PATIENCE = 60.0  # seconds that a training waits for a server, at its start and at its end
Row = dict[str, Any]


class Tracker(Protocol):
    def figures(self, step: int, named: dict[str, float]) -> None: ...

    def answers(self, rows: list[Row]) -> None: ...

    def close(self, failed: bool) -> None: ...


class Tracked(TrainerCallback):
    """The last of a trainer's callbacks, so that what the others have written is there. Opens at the first figures."""

    def __init__(self, cfg: TrackerConfig | None, out: Path):
        self.cfg, self.out = cfg, out
        self.broken = False
        self._tracker: Tracker | None = None
        self._metrics, self._answers = Tail(out / "metrics.jsonl"), Tail(out / "answers.jsonl")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cfg and not self.broken and state.is_world_process_zero:
            self._trying(self._show)

    def close(self, failed: bool = False) -> None:
        if tracker := self._tracker:
            self._tracker = None
            self._trying(lambda: tracker.close(failed))

    def _show(self) -> None:
        assert self.cfg
        self._tracker = self._tracker or opened(self.cfg, json.loads((self.out / STEP_FILE).read_text()))
        for row in self._metrics.new():
            figures = {_filed(name): value for name, value in row.items() if name not in ("step", "epoch")}
            self._tracker.figures(row["step"], figures)
        if rows := self._answers.new():
            self._tracker.answers(rows)

    def _trying(self, act: Callable[[], None]) -> None:
        """An exception's own words are not repeated: a server's may hold the key."""
        assert self.cfg
        try:
            act()
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            said = (
                f"! tracker={self.cfg.kind} failed ({why}): training goes on without it; metrics.jsonl has every step"
            )
            if not self.broken:
                print(said, file=sys.stderr, flush=True)
            self.broken = True


class Tail:
    """The rows of a growing file, each once."""

    def __init__(self, file: Path):
        self.file, self._read = file, 0

    def new(self) -> list[Row]:
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._read)
            fresh = file.readlines()
            self._read = file.tell()
        return [json.loads(line) for line in fresh]


def _filed(name: str) -> str:
    """Both tools make a section of what stands before the first slash."""
    return f"dev/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def opened(cfg: TrackerConfig, step: dict[str, Any]) -> Tracker:
    story = Path(step["story"])
    named = story_name(step)
    return WandbRun(cfg, step, story, named) if isinstance(cfg, Wandb) else EventFiles(story / "tensorboard" / named)


def story_name(step: dict[str, Any]) -> str:
    """What a training's own folder in the run is called: `train-1`."""
    return step["stage"] + (f"-{step['label']}" if step["label"] else "")


class WandbRun:
    def __init__(self, cfg: Wandb, step: dict[str, Any], story: Path, named: str):
        import wandb

        self._table = wandb.Table
        group, point = grouped(story)
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False}
        self._run = wandb.init(
            mode=cfg.mode,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group or group,
            name="/".join(part for part in (cfg.name, point, named) if part),
            job_type=step["stage"],
            config={**without_runtime(step["config"]), "fingerprint": step["fingerprint"]},
            dir=story,
            settings=wandb.Settings(**quiet, init_timeout=PATIENCE, finish_timeout=PATIENCE),
        )

    def figures(self, step: int, named: dict[str, float]) -> None:
        self._run.log(named, step=step)

    def answers(self, rows: list[Row]) -> None:
        table = self._table(columns=[*rows[0]], data=[list(row.values()) for row in rows])
        self._run.log({"dev/answers": table}, step=rows[-1]["step"])

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class EventFiles:
    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def figures(self, step: int, named: dict[str, float]) -> None:
        for name, value in named.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def answers(self, rows: list[Row]) -> None:
        for row in rows:
            text = f"**{row['prompt']}**\n\n{row['answer']}"
            self._writer.add_text(f"dev/answers/{row['prompt_id']}", text, row["step"])

    def close(self, failed: bool) -> None:
        self._writer.close()


def grouped(story: Path) -> tuple[str, str | None]:
    """`<recipe>/<time>` of a run or a whole sweep, and which point of a sweep this is."""
    point = story.name if story.name.isdigit() or story.name == "best" else None
    of = story.parent if point else story
    return f"{of.parent.name}/{of.name}", point


def train(trainer: Any, checkpoint: Path | None) -> None:
    """From its start, or from a checkpoint, to its end; a tracker learns whether it got there."""
    tracked = [each for each in trainer.callback_handler.callbacks if isinstance(each, Tracked)]
    done = False
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        done = True
    finally:
        for each in tracked:
            each.close(failed=not done)
