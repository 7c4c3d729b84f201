from pathlib import Path
from typing import Any

from pipeline.config import BestOfNConfig, SftConfig
from tests.support.toys import make


def run(cfg: SftConfig | BestOfNConfig, out: Path, **inputs: Any) -> None:
    make("sft", cfg, out, inputs)
