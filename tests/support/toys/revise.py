from pathlib import Path
from typing import Any

from pipeline.config import RevisionRequest
from tests.support.toys import make


def run(cfg: RevisionRequest, out: Path, **inputs: Any) -> None:
    make("revise", cfg, out, inputs)
