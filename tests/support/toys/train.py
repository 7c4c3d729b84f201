from pathlib import Path
from typing import Any

from pipeline.config import TrainConfig
from tests.support.toys import make


def run(cfg: TrainConfig, out: Path, **inputs: Any) -> None:
    make("train", cfg, out, inputs)
