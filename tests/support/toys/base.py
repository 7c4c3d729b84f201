from pathlib import Path
from typing import Any

from pipeline.config import BaseConfig
from tests.support.toys import make


def run(cfg: BaseConfig, out: Path, **inputs: Any) -> None:
    make("base", cfg, out, inputs)
