"""The estimate of a training's memory against what two steps of it held, for one size of model.

python -m bench.gpu.memory FILE DEADLINE small|medium|large

On a GPU torch's allocator counts, with what a paged optimizer holds outside of it. On a CPU, where
the allocator counts nothing, the bytes of all tensors that are alive at once.
"""

import gc
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from bench.gpu.lines import Values, time_line
from bench.gpu.models import HAS_GPU, write_model
from pipeline import hardware
from pipeline.artifacts import Model
from pipeline.config import TrainConfig
from pipeline.resources.model_shape import GIB, read_shape
from pipeline.resources.training_memory import MemoryEstimate, ProcessMemory
from pipeline.training import build
from pipeline.training.monitoring import guards
from tests.support.bytes_held import BytesHeld
from tests.support.preferences import FULL, LORA, QLORA, dpo

ROWS, LONGEST, PROMPT = (4, 1024, 256) if HAS_GPU else (2, 128, 32)
KINDS = {"lora": {**LORA, "rank": 16}, "qlora": {**QLORA, "rank": 16}, "full": FULL}
TOLERANCE = 0.1


def make_config(kind: str) -> TrainConfig:
    """Two micro-batches a step, so that gradients accumulate."""
    return dpo(
        KINDS[kind],
        micro_batch=ROWS,
        batch=2 * ROWS,
        max_length=LONGEST,
        dtype="bfloat16",
        gradient_checkpointing=True,
        by_length=False,
        save_every=10_000,
        guards={"prompts": 0},
    )


def make_rows(cfg: TrainConfig) -> dict[str, pl.DataFrame]:
    """Two steps. Every other row is shorter, so that rows are padded and attention has a mask."""
    draw = random.Random(0)

    def row(number: int) -> dict[str, Any]:
        length = LONGEST - PROMPT - number % 2
        sides = {
            f"{side}_ids": draw.choices(range(10, 300), k=length) for side in ("chosen", "rejected")
        }
        values = {f"ref_{side}_logps": -10.0 * length for side in ("chosen", "rejected")}
        return {"prompt_ids": [10] * PROMPT, **sides, **values}

    train = pl.DataFrame([row(number) for number in range(2 * cfg.batch)])
    return {"train": train, "dev": train.clear()}


def estimate(cfg: TrainConfig, init: Model) -> MemoryEstimate:
    """Of a step: the estimate's last moment is an evaluation, and there is none here."""
    shape = read_shape(Path(init.weights))
    assert shape
    *moments, _ = ProcessMemory(shape, cfg, ROWS, LONGEST, 1, HAS_GPU).moments()
    return max(moments, key=lambda moment: moment.total)


def train_two_steps(cfg: TrainConfig, init: Model, out: Path) -> None:
    """From the reading of the weights to the second optimizer step."""
    rows = make_rows(cfg)
    policy = build.load_policy(cfg, init)
    watch = guards.build_guards(cfg, init, init, None, rows["dev"], out)
    # The reference values are made up: of another model than this, they are not compared.
    other = Model(init.path.parent)
    trainer, _ = build.build_trainer(cfg, policy, init, other, rows, out, watch)
    trainer.train()


def measure_gpu(train: Callable[[], None]) -> Values:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, paged_before = torch.cuda.memory_allocated(), count_paged_bytes()
    train()
    paged = count_paged_bytes() - paged_before
    return {
        "measured": torch.cuda.max_memory_allocated() - before + paged,
        "reserved": torch.cuda.max_memory_reserved(),
    }


def count_paged_bytes() -> int:
    """What bitsandbytes' paged optimizers hold, which torch's allocator does not know of."""
    from bitsandbytes.functional import GlobalPageManager

    return sum(each.nbytes for each in GlobalPageManager.get_instance().paged_tensors)


def measure_tensors(train: Callable[[], None]) -> Values:
    with BytesHeld() as held:
        train()
    return {"measured": held.most}


def compare(cfg: TrainConfig, init: Model, out: Path) -> Values:
    """GiB as estimated and as measured."""
    shape, told = read_shape(Path(init.weights)), estimate(cfg, init)
    assert shape
    values: Values = {
        "parameters": shape.parameters,
        "rows": ROWS,
        "longest": LONGEST,
        "estimated": round(told.total / GIB, 3),
        "parts": {name: round(size / GIB, 3) for name, size in told.parts.items()},
    }
    available, where = hardware.measure_memory()
    if told.total > available:
        return {**values, "skipped": f"there are {available / GIB:.0f} GiB {where}"}
    measure = measure_gpu if HAS_GPU else measure_tensors
    try:
        sizes = measure(lambda: train_two_steps(cfg, init, out))
    except torch.OutOfMemoryError:
        fault = f"out of memory: there were {available / GIB:.0f} GiB {where}"
        return {**values, "holds": False, "failed": fault}
    values |= {name: round(size / GIB, 3) for name, size in sizes.items()}
    values["ratio"] = round(told.total / sizes["measured"], 3)
    return {**values, "holds": abs(values["ratio"] - 1) <= TOLERANCE}


def main(file: Path, size: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        init = write_model(Path(name) / "sft" / size, size)
        for kind in KINDS:
            with time_line(file, f"memory of {size}, {kind}") as values:
                values |= compare(make_config(kind), init, Path(name) / "out" / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3])
