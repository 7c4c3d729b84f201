from pathlib import Path
from typing import Any

from pipeline.config import SampleRequest
from tests.support.toys import make


def run(cfg: SampleRequest, out: Path, **inputs: Any) -> None:
    make("sample", cfg, out, inputs)
