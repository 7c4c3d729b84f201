"""A training of full weights that is killed between two checkpoints and resumed, against its twin.

python -m bench.gpu.resume FILE DEADLINE
python -m bench.gpu.resume train FOLDER   the process that is killed

The twin runs through. On a CPU both end with the same weights; on a GPU some sums are taken in
another order each time, so the losses are compared, and the gap of the weights is noted.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.lines import Values, time_line
from bench.gpu.models import HAS_GPU, write_model
from bench.training import write_pairs
from pipeline.artifacts import Logps, Model, Pairs
from pipeline.config import TrainConfig
from pipeline.stages import train
from pipeline.training.monitoring.callbacks import ProgressLine
from tests.support.preferences import FULL, dpo, write_logps

PAIRS, BATCH, SAVE_EVERY = (192, 8, 8) if HAS_GPU else (24, 4, 2)
MEDIAN, CAP = (250, 700) if HAS_GPU else (20, 60)
CHECKPOINTS = "scratch/checkpoints/checkpoints.json"
# Of the losses of any step, beyond which the resumed training is another one.
TOLERANCE = 0.02


def make_config() -> TrainConfig:
    return dpo(
        {**FULL, "learning_rate": 1e-5},
        dtype="bfloat16",
        batch=BATCH,
        micro_batch=BATCH // 2,
        max_length=1024,
        save_every=SAVE_EVERY,
        gradient_checkpointing=True,
        guards={"prompts": 0},
    )


def train_in(folder: Path, name: str) -> Model:
    """The real stage, as the driver calls it."""
    init = Model(folder / "sft" / "small")
    inputs: dict[str, Any] = {
        "pairs": [Pairs(folder / "pairs")],
        "logps": [Logps(folder / "logps")],
    }
    out = folder / "train" / name
    out.mkdir(parents=True, exist_ok=True)
    return train.run(make_config(), out, init=init, reference=init, **inputs)


def kill_after_checkpoint(folder: Path, deadline: float) -> int:
    """Start a training, kill it once a checkpoint is complete. Returns the steps that it logged."""
    out = folder / "train" / "killed"
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, "train", str(folder)])
    try:
        while not (out / CHECKPOINTS).exists():
            if process.poll() is not None:
                raise SystemExit("the training that was to be killed ended without a checkpoint")
            if time.time() > deadline:
                raise SystemExit("no checkpoint before the deadline")
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return max(read_losses(Model(out)))


def read_losses(model: Model) -> dict[int, float]:
    """By step. The kill may have cut the last line short."""
    losses = {}
    for line in (model.path / "metrics.jsonl").read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "loss" in entry:
            losses[entry["step"]] = entry["loss"]
    return losses


def resume(folder: Path) -> tuple[Model, int]:
    """The finished model, and the step that the training began with."""
    begun: list[int] = []
    plain = ProgressLine.on_train_begin

    def on_train_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begun.append(state.global_step)
        plain(self, args, state, control, **kwargs)

    ProgressLine.on_train_begin = on_train_begin  # type: ignore[method-assign]
    try:
        return train_in(folder, "killed"), begun[0]
    finally:
        ProgressLine.on_train_begin = plain  # type: ignore[method-assign]


def measure_gap(resumed: Model, twin: Model, start: Model) -> float:
    """The distance of their weights over the way that the twin's went; 1 would be another way."""
    from safetensors.torch import load_file

    weights, wanted, first = (
        load_file(Path(model.weights) / "model.safetensors") for model in (resumed, twin, start)
    )
    gap = sum((weights[name] - wanted[name]).float().square().sum().item() for name in wanted)
    way = sum((first[name] - wanted[name]).float().square().sum().item() for name in wanted)
    return (gap / way) ** 0.5


def compare(resumed: Model, resumed_at: int, twin: Model, start: Model) -> Values:
    found, wanted = read_losses(resumed), read_losses(twin)
    gap = max(abs(found[step] - wanted[step]) for step in found.keys() & wanted.keys())
    has_same_steps = found.keys() == wanted.keys()
    weights_gap = measure_gap(resumed, twin, start)
    return {
        "steps": max(wanted),
        "resumed_at": resumed_at,
        "greatest_loss_difference": gap,
        "weights_gap": float(f"{weights_gap:.2g}"),
        "holds": resumed_at > 0 and has_same_steps and gap <= TOLERANCE,
    }


def main(file: Path, deadline: float) -> None:
    with tempfile.TemporaryDirectory() as name, time_line(file, "kill and resume") as values:
        folder = Path(name)
        sft = write_model(folder / "sft" / "small", "small")
        pairs = write_pairs(folder / "pairs", sft, PAIRS, MEDIAN, CAP)
        write_logps(folder / "logps", sft, pairs, "bfloat16")
        twin = train_in(folder, "twin")
        values["killed_after"] = kill_after_checkpoint(folder, deadline)
        values |= compare(*resume(folder), twin=twin, start=sft)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train_in(Path(sys.argv[2]), "killed")
    else:
        main(Path(sys.argv[1]), float(sys.argv[2]))
