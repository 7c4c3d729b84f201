from pathlib import Path
from typing import Any

from pipeline.config import BestScored, ScoreConfig
from tests.support.toys import make


def run(cfg: ScoreConfig | BestScored, out: Path, **inputs: Any) -> None:
    make("score", cfg, out, inputs)
