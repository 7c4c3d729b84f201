from pathlib import Path
from typing import Any

from pipeline.config import SftConfig
from tests.support.forked import use_libraries
from tests.support.toys import sft


def run(cfg: SftConfig, out: Path, **inputs: Any) -> None:
    sft.run(cfg, out, **inputs)
    use_libraries(out)
