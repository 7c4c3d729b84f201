from pathlib import Path
from typing import Any

from pipeline.config import Draw
from tests.support.toys import make


def run(cfg: Draw, out: Path, **inputs: Any) -> None:
    make("sample", cfg, out, inputs)
