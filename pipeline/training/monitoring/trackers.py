"""Shows a training in W&B or TensorBoard as it runs: what `metrics.jsonl` and `answers.jsonl` say, as they say it.

What it writes lies in the run's folder, which `step.json` names, never in the artifact. It reads those two files, so
that a resumed training is shown from its first step. Whatever fails here is said once, and training goes on.
"""

import html
import json
import re
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from pipeline.artifacts import STEP_FILE, write_text
from pipeline.config import TrackerConfig, Wandb
from pipeline.hashing import drop_runtime

PATIENCE = 60.0  # seconds that a training waits for a server, at its start and at its end
KNOWN = {
    r"[Tt]imed out|deadline exceeded|giving up": "its server does not answer",
    r"not logged in|error 401": "its server does not take the key",
    r"permission|error 403": "its server does not let the key write to this project",
    r"(project|entity).* not found|error 404": "its server knows no such project or entity",
}
Row = dict[str, Any]


class Tracker(Protocol):
    def show(self, step: int, figures: dict[str, float], answers: list[Row]) -> None: ...

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
        self._tracker = self._tracker or opened(self.cfg, self.out)
        figures: dict[int, dict[str, float]] = defaultdict(dict)
        answers: dict[int, list[Row]] = defaultdict(list)
        for row in self._metrics.new():
            figures[row["step"]] |= {
                _filed(name): row[name] for name in row if name not in ("step", "epoch")
            }
        for row in self._answers.new():
            answers[row["step"]].append(row)
        for step in sorted({*figures, *answers}):
            self._tracker.show(step, figures[step], answers[step])

    def _trying(self, act: Callable[[], None]) -> None:
        assert self.cfg
        try:
            act()
        except Exception as error:
            if not self.broken:
                fate = "training goes on without it; metrics.jsonl has every step"
                _say(self.cfg.kind, f"failed ({_why(error)}): {fate}")
            self.broken = True


def _say(kind: str, text: str) -> None:
    print(f"! tracker={kind} {text}", file=sys.stderr, flush=True)


def _why(error: Exception) -> str:
    """An exception's own words are not repeated: a server's may hold the key."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(
        (said for words, said in KNOWN.items() if re.search(words, str(error))),
        type(error).__name__,
    )


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


def opened(cfg: TrackerConfig, out: Path) -> Tracker:
    step = json.loads((out / STEP_FILE).read_text())
    if isinstance(cfg, Wandb):
        return WandbRun(cfg, step, remembered_id(out / "scratch") if cfg.mode == "online" else None)
    return EventFiles(Path(step["story"]) / "tensorboard" / story_name(step))


def remembered_id(scratch: Path) -> str:
    """What W&B calls this training; killed and run again it has the same, so that a person sees one run."""
    file = scratch / "wandb-run"
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text()


def story_name(step: dict[str, Any]) -> str:
    """What a training's own folder in the run is called: `train-1`."""
    return step["stage"] + (f"-{step['label']}" if step["label"] else "")


class WandbRun:
    """With an `id` the run that has it goes on; offline, where none can be asked for, every attempt is a whole one."""

    def __init__(self, cfg: Wandb, step: dict[str, Any], id: str | None):
        import wandb

        story = Path(step["story"])
        group, point = grouped(story)
        wandb.setup(wandb.Settings(show_info=False))  # a server's own words are repeated there
        quiet = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
        }
        patient = {
            "init_timeout": PATIENCE,
            "finish_timeout": PATIENCE,
            "finish_timeout_raises": True,
        }
        self._html = wandb.Html
        self._run = wandb.init(
            mode=cfg.mode,
            id=id,
            resume="allow" if id else None,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group or group,
            name="/".join(part for part in (cfg.name, point, story_name(step)) if part),
            job_type=step["stage"],
            config={**drop_runtime(step["config"]), "fingerprint": step["fingerprint"]},
            dir=story,
            settings=wandb.Settings(**quiet, **patient, stop_fn=_not_stopped),
        )

    def show(self, step: int, figures: dict[str, float], answers: list[Row]) -> None:
        """What W&B has from before a kill it would take at no step again."""
        if step < self._run.starting_step:
            return
        self._run.log(figures, step=step)
        if (
            answers
        ):  # as a page: for a table W&B asks its server about the name, and the training waits
            self._run.log({"dev/answers": self._html(page(answers), inject=False)}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _not_stopped() -> None:
    """W&B's own way is to interrupt the training."""
    _say(
        "wandb",
        "was asked to stop the run: a tracker stops no training; press Ctrl-C where it runs",
    )


def page(answers: list[Row]) -> str:
    cells = (
        f"<tr><td>{html.escape(row['prompt'])}<td>{html.escape(row['answer'])}" for row in answers
    )
    return f'<meta charset="utf-8"><table border="1" style="white-space: pre-wrap">{"".join(cells)}</table>'


class EventFiles:
    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def show(self, step: int, figures: dict[str, float], answers: list[Row]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        for row in answers:
            text = f"**{row['prompt']}**\n\n{row['answer']}"
            self._writer.add_text(f"dev/answers/{row['prompt_id']}", text, step)
        self._writer.flush()

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
