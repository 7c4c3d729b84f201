"""Time and money of every step that the report descends from, summed by stage."""

from pathlib import Path
from typing import Any

from pipeline.artifacts import MADE_BY
from pipeline.progress import PHASES
from pipeline.report.analysis.ancestors import Ancestor, read_ancestors


def describe_cost(out: Path) -> list[dict[str, Any]]:
    """One row per stage in the order of the pipeline. The opening of models is not in tokens/s."""
    steps: dict[str, list[dict[str, Any]]] = {}
    for ancestor in read_ancestors(out):
        steps.setdefault(ancestor.stage, []).append(_describe_step(ancestor))
    return [_describe_stage(stage, steps[stage]) for stage in MADE_BY if stage in steps]


def _describe_step(ancestor: Ancestor) -> dict[str, Any]:
    head = {"label": str(ancestor.label), "fingerprint": ancestor.fingerprint}
    return {**ancestor.cost, **head, "seconds": ancestor.seconds}


def _describe_stage(stage: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(step["seconds"] or 0.0 for step in steps)
    with_tokens = [step for step in steps if step.get("tokens") is not None]
    tokens = sum(step["tokens"] for step in with_tokens) if with_tokens else None
    busy = sum(_generation_seconds(step) for step in with_tokens)
    split = [step["phases"] for step in steps if "phases" in step]
    paid = [step["money"] for step in steps if step.get("money")]
    return {
        "stage": stage,
        "seconds": seconds,
        "phases": {name: sum(one[name] for one in split) for name in PHASES} if split else None,
        "models_opened": sum(step.get("models_opened", 0) for step in steps) if split else None,
        "tokens": tokens,
        "money": sum(paid) if paid else None,
        "tokens_per_second": tokens / busy if tokens is not None and busy else None,
        "steps": steps,
    }


def _generation_seconds(step: dict[str, Any]) -> float:
    """Seconds that its tokens took, at the speed that it measured, or else all of its time."""
    speed = step.get("tokens_per_second")
    return step["tokens"] / speed if speed else step["seconds"] or 0.0
