from pathlib import Path
from typing import Any

from pipeline.config import ReferConfig
from tests.support.toys import make


def run(cfg: ReferConfig, out: Path, **inputs: Any) -> None:
    make("refer", cfg, out, inputs)
