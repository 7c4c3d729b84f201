from pathlib import Path
from typing import Any

from pipeline.config import DuelConfig
from tests.toys import make


def run(cfg: DuelConfig, out: Path, **inputs: Any) -> None:
    make("duel", cfg, out, inputs)
