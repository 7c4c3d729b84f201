from pathlib import Path
from typing import Any

from pipeline.config import ReferenceConfig
from tests.support.toys import make


def run(cfg: ReferenceConfig, out: Path, **inputs: Any) -> None:
    make("reference", cfg, out, inputs)
