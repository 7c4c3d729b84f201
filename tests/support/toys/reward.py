from pathlib import Path
from typing import Any

from pipeline.config import RewardConfig
from tests.support.toys import make


def run(cfg: RewardConfig, out: Path, **inputs: Any) -> None:
    make("reward", cfg, out, inputs)
