from pathlib import Path
from typing import Any

from pipeline.config import StepSearch
from tests.support.toys import make


def run(cfg: StepSearch, out: Path, **inputs: Any) -> None:
    make("steps", cfg, out, inputs)
