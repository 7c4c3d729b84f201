from pathlib import Path
from typing import Any

from pipeline.config import OfflineConfig
from tests.support.toys import make


def run(cfg: OfflineConfig, out: Path, **inputs: Any) -> None:
    make("offline", cfg, out, inputs)
