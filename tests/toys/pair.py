from pathlib import Path
from typing import Any

from pipeline.config import PairConfig
from tests.toys import make


def run(cfg: PairConfig, out: Path, **inputs: Any) -> None:
    make("pair", cfg, out, inputs)
