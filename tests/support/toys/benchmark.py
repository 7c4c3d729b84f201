import os
from pathlib import Path
from typing import Any

from pipeline.artifacts import UNAVAILABLE_FILE, write_text
from pipeline.config import BenchmarkConfig
from tests.support.toys import make


def run(cfg: BenchmarkConfig, out: Path, **inputs: Any) -> None:
    """TOY_ABSENT: it is not on this machine."""
    make("benchmark", cfg, out, inputs)
    if os.environ.get("TOY_ABSENT"):
        write_text(out / UNAVAILABLE_FILE, "Not here.")
