from pathlib import Path
from typing import Any

from pipeline.config import BenchmarkConfig
from tests.toys import make


def run(cfg: BenchmarkConfig, out: Path, **inputs: Any) -> None:
    make("benchmark", cfg, out, inputs)
