from pathlib import Path
from typing import Any

from pipeline.config import ScoreConfig
from tests.toys import make


def run(cfg: ScoreConfig, out: Path, **inputs: Any) -> None:
    make("score", cfg, out, inputs)
