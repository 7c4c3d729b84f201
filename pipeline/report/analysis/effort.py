"""What each round's training drew and took, where one of them is online.

DPO samples and scores before it trains, and an online trainer does so while it trains: only their
sums can be compared, at equal samples or at equal seconds.
"""

from pathlib import Path
from typing import Any

from pipeline.report.analysis.ancestors import Ancestor, read_ancestors

TRAINING = "train"


def describe_effort(out: Path) -> list[dict[str, Any]]:
    """By round; none where every training reads pairs, as the table of costs says it all."""
    steps = [step for step in read_ancestors(out) if isinstance(step.label, int) and step.label]
    trainings = [step for step in steps if step.stage == TRAINING]
    if not any(is_online(step) for step in trainings):
        return []
    return [describe_round(step, steps) for step in sorted(trainings, key=lambda one: one.label)]


def is_online(training: Ancestor) -> bool:
    return "request" in training.config


def describe_round(training: Ancestor, steps: list[Ancestor]) -> dict[str, Any]:
    own = [step for step in steps if step.label == training.label]
    drawing = [training] if is_online(training) else [s for s in own if s.stage == "sample"]
    return {
        "round": f"round-{training.label}",
        "trainer": training.config.get("trainer"),
        "loss": ", ".join(training.config.get("loss", [])),
        "samples": sum(step.cost.get("completions", 0) for step in drawing),
        "seconds": sum(step.seconds or 0.0 for step in own),
        "training_seconds": training.seconds,
        "resumes": describe_resuming(training),
    }


def describe_resuming(training: Ancestor) -> str:
    """How far a killed training resumes with the same bytes, on a CPU."""
    if not is_online(training):
        return "from the newest checkpoint, with the same bytes on a CPU"
    if training.cost.get("sampled_by") == "vllm":
        return "from the newest checkpoint; vLLM's later answers are drawn anew"
    return "from the newest checkpoint before new answers, with the same bytes on a CPU"
