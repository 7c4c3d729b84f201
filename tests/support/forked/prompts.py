from pathlib import Path
from typing import Any

from pipeline.config import PromptsConfig
from tests.support.forked import use_libraries
from tests.support.toys import prompts


def run(cfg: PromptsConfig, out: Path, **inputs: Any) -> None:
    prompts.run(cfg, out, **inputs)
    use_libraries(out)
