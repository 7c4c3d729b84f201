from pathlib import Path
from typing import Any

from pipeline.config import SampleRequest
from tests.support.forked import use_libraries
from tests.support.toys import sample


def run(cfg: SampleRequest, out: Path, **inputs: Any) -> None:
    sample.run(cfg, out, **inputs)
    use_libraries(out)
