"""Tokens per second and MFU of ours and of plain TRL, in turn on the same pairs.

python -m bench.gpu.speed FILE DEADLINE

Four sides, as in bench/training.py: TRL's own trainer with its reference model, ours with
precomputed reference values, with batches of rows of similar length, and by the defaults. A line
for each round after the first, which does not count; as many rounds as the deadline allows, at
most five.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import torch

from bench import training
from bench.gpu.lines import Values, time_line
from bench.gpu.models import HAS_GPU, write_model
from pipeline import hardware
from pipeline.artifacts import Logps, Model, Pairs
from pipeline.resources.model_shape import read_shape
from pipeline.resources.training_fit import sequence_lengths

SIZE, PAIRS, MEDIAN, CAP = ("medium", 192, 250, 700) if HAS_GPU else ("small", 32, 20, 60)
ROUNDS = 5 if HAS_GPU else 1
Side = Callable[[], tuple[float, training.Losses]]


def count_tokens(pairs: Pairs) -> int:
    """Without padding. Both answers of a pair are read with their prompt."""
    return sum(sequence_lengths(pairs.read_train(), "token_ids"))


def list_sides(sft: Model, pairs: Pairs, logps: Logps, out: Path) -> dict[str, Side]:
    return {
        "trl": lambda: training.train_trl(sft, pairs, out),
        "precomputed": lambda: training.train_ours(
            sft, pairs, logps, out, by_length=False, shared_prompt=False
        ),
        "lengths": lambda: training.train_ours(sft, pairs, logps, out, shared_prompt=False),
        "defaults": lambda: training.train_ours(sft, pairs, logps, out),
    }


def run_round(sides: dict[str, Side]) -> tuple[dict[str, float], dict[str, training.Losses]]:
    """Seconds and losses of each side."""
    seconds, losses = {}, {}
    for name, train in sides.items():
        seconds[name], losses[name] = train()
        gc.collect()
        if HAS_GPU:
            torch.cuda.empty_cache()
    return seconds, losses


def describe_round(
    parameters: int, tokens: int, seconds: dict[str, float], losses: dict[str, training.Losses]
) -> Values:
    speeds = {name: tokens / taken for name, taken in seconds.items()}
    gaps = {
        name: max(abs(a - b) for a, b in zip(found, losses["trl"], strict=True))
        for name, found in losses.items()
        if name != "trl"
    }
    peak = hardware.find_peak()
    # Six operations for each parameter and token: forward, and both gradients. The forward pass of
    # checkpointing, and TRL's of its reference, are what MFU leaves out by its definition.
    mfu = {name: 6 * parameters * speed / peak for name, speed in speeds.items()} if peak else None
    return {
        "parameters": parameters,
        "tokens": tokens,
        "tokens_per_second": {name: round(speed) for name, speed in speeds.items()},
        "mfu": mfu and {name: round(share, 4) for name, share in mfu.items()},
        "time_over_trl": {
            name: round(taken / seconds["trl"], 3) for name, taken in seconds.items()
        },
        "greatest_loss_difference": {name: float(f"{gap:.2g}") for name, gap in gaps.items()},
    }


def main(file: Path, deadline: float) -> None:
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sft = write_model(folder / "sft" / SIZE, SIZE)
        pairs = training.write_pairs(folder / "pairs", sft, PAIRS, median=MEDIAN, cap=CAP)
        _, logps = training.time_reference(sft, pairs, folder / "reference")
        shape, tokens = read_shape(Path(sft.weights)), count_tokens(pairs)
        assert shape
        sides = list_sides(sft, pairs, logps, folder / "out")
        started = time.time()
        run_round(sides)
        longest = time.time() - started
        for number in range(1, ROUNDS + 1):
            if time.time() + longest > deadline:
                break
            with time_line(file, "speed") as values:
                values["round"] = number
                values |= describe_round(shape.parameters, tokens, *run_round(sides))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
