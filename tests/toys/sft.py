from pathlib import Path
from typing import Any

from pipeline.config import SftConfig
from tests.toys import make


def run(cfg: SftConfig, out: Path, **inputs: Any) -> None:
    make("sft", cfg, out, inputs)
