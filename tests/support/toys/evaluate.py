from pathlib import Path
from typing import Any

from pipeline.artifacts import write_json, write_text
from pipeline.config import ReportConfig
from pipeline.hashing import hash_json
from tests.support.toys import content, make


def run(cfg: ReportConfig, out: Path, **inputs: Any) -> None:
    """Its score is made from the chosen model's content; the higher it is, the further that
    model has gone."""
    make("evaluate", cfg, out, inputs)
    score = int(hash_json(content(inputs["chosen"]))[:8], 16) / 16**8
    chosen = {
        "name": "round-1",
        "metrics": {cfg.scorer: {"mean": score}},
        "kl": {"mean": 2 * score},
    }
    control = {"name": "control", "metrics": {cfg.scorer: {"mean": 9.0}}, "kl": {"mean": None}}
    write_json(
        out / "report.json", {"evaluation": {"chosen": "round-1"}, "models": [chosen, control]}
    )
    write_text(out / "report.html", f"{score:.6f}\n")
