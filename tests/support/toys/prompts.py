from pathlib import Path
from typing import Any

from pipeline.config import PromptsConfig
from tests.support.toys import make


def run(cfg: PromptsConfig, out: Path, **inputs: Any) -> None:
    make("prompts", cfg, out, inputs, ("train", "dev", "test", "decontamination"))
