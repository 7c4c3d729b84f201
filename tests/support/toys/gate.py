from pathlib import Path
from typing import Any

from pipeline.artifacts import MODEL_FILE, write_json
from pipeline.config import GateConfig
from tests.support.toys import content, make


def run(cfg: GateConfig, out: Path, *, evals: dict[str, Any]) -> None:
    """Points to the last model."""
    make("gate", cfg, out, {"evals": evals})
    last = [*evals.values()][-1]["model"]
    write_json(
        out / MODEL_FILE,
        {"target": f"{last.path.parent.name}/{last.path.name}", "content": content(last)},
    )
