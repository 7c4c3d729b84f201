"""Show `metrics.jsonl` and `answers.jsonl` of a running training in W&B or TensorBoard.

A tracker writes to the run's folder, which `step.json` names, never to the artifact. It reads the
two files, so a resumed training is shown from its first step. A failure here is printed once, and
training continues.
"""

import html
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from pipeline.artifacts import STEP_FILE, write_text
from pipeline.config import TrackerConfig, Wandb
from pipeline.hashing import drop_runtime
from pipeline.progress import print_warning

PATIENCE = 60.0  # seconds to wait for a server, at a training's start and at its end
KNOWN_ERRORS = {
    r"[Tt]imed out|deadline exceeded|giving up": "its server does not answer",
    r"not logged in|error 401": "its server does not take the key",
    r"permission|error 403": "its server does not let the key write to this project",
    r"(project|entity).* not found|error 404": "its server knows no such project or entity",
}
Row = dict[str, Any]


class Tracker(Protocol):
    def show(self, step: int, figures: dict[str, float], answers: list[Row]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TrackerCallback(TrainerCallback):
    """Comes last of the callbacks, after the files are written. It opens at the first figures."""

    def __init__(self, cfg: TrackerConfig | None, out: Path):
        self.cfg, self.out = cfg, out
        self.broken = False
        self._tracker: Tracker | None = None
        self._metrics, self._answers = (
            FileTail(out / "metrics.jsonl"),
            FileTail(out / "answers.jsonl"),
        )

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cfg and not self.broken and state.is_world_process_zero:
            self._run_safely(self._show)

    def close(self, failed: bool = False) -> None:
        if tracker := self._tracker:
            self._tracker = None
            self._run_safely(lambda: tracker.close(failed))

    def _show(self) -> None:
        assert self.cfg
        self._tracker = self._tracker or open_tracker(self.cfg, self.out)
        figures: dict[int, dict[str, float]] = defaultdict(dict)
        answers: dict[int, list[Row]] = defaultdict(list)
        for row in self._metrics.read_new():
            names = row.keys() - {"step", "epoch"}
            figures[row["step"]] |= {
                _section_name(name): row[name] for name in row if name in names
            }
        for row in self._answers.read_new():
            answers[row["step"]].append(row)
        for step in sorted({*figures, *answers}):
            self._tracker.show(step, figures[step], answers[step])

    def _run_safely(self, act: Callable[[], None]) -> None:
        assert self.cfg
        try:
            act()
        except Exception as error:
            if not self.broken:
                fate = "training continues without it; metrics.jsonl has every step"
                _warn(self.cfg.kind, f"failed ({_explain(error)}): {fate}")
            self.broken = True


def _warn(kind: str, text: str) -> None:
    print_warning(f"tracker={kind} {text}")


def _explain(error: Exception) -> str:
    """A cause in our own words: a server's message may contain the key."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    causes = (cause for words, cause in KNOWN_ERRORS.items() if re.search(words, str(error)))
    return next(causes, type(error).__name__)


class FileTail:
    """Reads each row of a growing file once."""

    def __init__(self, file: Path):
        self.file, self._read = file, 0

    def read_new(self) -> list[Row]:
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return [json.loads(line) for line in lines]


def _section_name(name: str) -> str:
    """Both tools make a section of the part before the first slash."""
    return f"dev/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def open_tracker(cfg: TrackerConfig, out: Path) -> Tracker:
    step = json.loads((out / STEP_FILE).read_text())
    if isinstance(cfg, Wandb):
        return WandbRun(
            cfg, step, load_or_create_id(out / "scratch") if cfg.mode == "online" else None
        )
    return EventFiles(Path(step["story"]) / "tensorboard" / training_name(step))


def load_or_create_id(scratch: Path) -> str:
    """The training's id in W&B. A resumed training keeps it, so that W&B shows one run."""
    file = scratch / "wandb-run"
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text()


def training_name(step: dict[str, Any]) -> str:
    """The name of a training's folder within the run: `train-1`."""
    name = step["stage"] + (f"-{step['label']}" if step["label"] else "")
    # There are the trainings of all points of a sweep.
    return f"{name}-{step['fingerprint']}" if Path(step["story"]).name == "shared" else name


class WandbRun:
    """With an `id` the run that has it continues. Offline it has none: every attempt is a run."""

    def __init__(self, cfg: Wandb, step: dict[str, Any], id: str | None):
        import wandb

        run_dir = Path(step["story"])
        group, point = parse_run_dir(run_dir)
        wandb.setup(wandb.Settings(show_info=False))  # it would repeat a server's messages
        quiet = {"silent": True, "console": "off"}
        quiet |= {"disable_git": True, "disable_code": True, "save_code": False}
        patient = {"init_timeout": PATIENCE, "finish_timeout": PATIENCE}
        patient |= {"finish_timeout_raises": True}
        self._html = wandb.Html
        self._run = wandb.init(
            mode=cfg.mode,
            id=id,
            resume="allow" if id else None,
            project=cfg.project,
            entity=cfg.entity,
            group=cfg.group or group,
            name="/".join(part for part in (cfg.name, point, training_name(step)) if part),
            job_type=step["stage"],
            config={**drop_runtime(step["config"]), "fingerprint": step["fingerprint"]},
            dir=run_dir,
            settings=wandb.Settings(**quiet, **patient, stop_fn=_refuse_remote_stop),
        )

    def show(self, step: int, figures: dict[str, float], answers: list[Row]) -> None:
        """Skip steps that W&B has from before a kill: it accepts no step twice."""
        if step < self._run.starting_step:
            return
        self._run.log(figures, step=step)
        if answers:
            # As a page: for a table W&B asks its server about the name while the training waits.
            self._run.log(
                {"dev/answers": self._html(render_answers(answers), inject=False)}, step=step
            )

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _refuse_remote_stop() -> None:
    """Print a line where W&B would interrupt the training."""
    _warn(
        "wandb",
        "was asked to stop the run: a tracker cannot stop training; press Ctrl-C where it runs",
    )


def render_answers(answers: list[Row]) -> str:
    cells = (
        f"<tr><td>{html.escape(row['prompt'])}<td>{html.escape(row['answer'])}" for row in answers
    )
    table = f'<table border="1" style="white-space: pre-wrap">{"".join(cells)}</table>'
    return f'<meta charset="utf-8">{table}'


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


def parse_run_dir(run_dir: Path) -> tuple[str, str | None]:
    """`<recipe>/<time>` of a run or a whole sweep, and which point of a sweep this is, if any."""
    point = run_dir.name if run_dir.name.isdigit() or run_dir.name in ("best", "shared") else None
    whole = run_dir.parent if point else run_dir
    return f"{whole.parent.name}/{whole.name}", point


def train_with_trackers(trainer: Any, checkpoint: Path | None) -> None:
    """Train from the start or a checkpoint. Trackers learn whether the training ended or failed."""
    tracked = [
        each for each in trainer.callback_handler.callbacks if isinstance(each, TrackerCallback)
    ]
    done = False
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        done = True
    finally:
        for each in tracked:
            each.close(failed=not done)
