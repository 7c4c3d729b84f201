from pathlib import Path
from typing import Any

from pipeline.config import EvaluateConfig
from tests.toys import make


def run(cfg: EvaluateConfig, out: Path, **inputs: Any) -> None:
    make("evaluate", cfg, out, inputs)
