from pathlib import Path
from typing import Any

from pipeline.config import Evaluation
from tests.toys import make


def run(cfg: Evaluation, out: Path, **inputs: Any) -> None:
    make("evaluate", cfg, out, inputs)
