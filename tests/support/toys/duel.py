from pathlib import Path
from typing import Any

from pipeline.config import DuelConfig
from tests.support.toys import make


def run(cfg: DuelConfig, out: Path, **inputs: Any) -> None:
    make("duel", cfg, out, inputs)
