from pathlib import Path
from typing import Any

from pipeline.config import BestAnswersConfig, ScoreConfig
from tests.support.toys import make


def run(cfg: ScoreConfig | BestAnswersConfig, out: Path, **inputs: Any) -> None:
    make("score", cfg, out, inputs)
