from pathlib import Path
from typing import Any

from pipeline.config import BestScored, ScoreConfig
from tests.toys import make


def run(cfg: ScoreConfig | BestScored, out: Path, **inputs: Any) -> None:
    make("score", cfg, out, inputs)
