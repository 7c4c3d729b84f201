from pathlib import Path
from typing import Any

from pipeline.config import PairRound
from tests.support.toys import make


def run(cfg: PairRound, out: Path, **inputs: Any) -> None:
    make("pair", cfg, out, inputs)
