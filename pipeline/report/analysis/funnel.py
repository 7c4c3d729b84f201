"""From prompts to samples to pairs: what went in, what got lost and why, for each part of the way.

The counts stand in the steps' costs, which stay when their files are pruned; the reasons stand in those files.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import Pairs, read_table
from pipeline.report.analysis.ancestors import Ancestor, ancestors_of

PRUNED = "reasons no longer kept"


def funnel_of(out: Path, pairs: list[Pairs]) -> dict[str, Any]:
    steps = ancestors_of(out)
    draws = [draw(step) for step in steps if step.stage == "sample"]
    return {
        "prompts": next((prompts(step) for step in steps if step.stage == "prompts"), None),
        "samples": sorted(draws, key=_rounds_first),
        "pairs": [
            {"round": number, **made.read_funnel()} for number, made in enumerate(pairs, start=1)
        ],
    }


def prompts(step: Ancestor) -> dict[str, Any] | None:
    story = step.path / "funnel.json"
    return json.loads(story.read_text()) if story.exists() else None


def draw(step: Ancestor) -> dict[str, Any]:
    """One draw: of a round, of a later wave of it, or for an exam. Tokens are means over its completions."""
    cost, drawn = step.cost, step.cost.get("completions", 0)
    return {
        "label": step.label,
        "wave": step.config.get("wave", 0),
        "fingerprint": step.fingerprint,
        "prompts": cost.get("prompts", 0),
        "dropped": _reasons(step, "dropped"),
        "completions": drawn,
        "failed": _reasons(step, "failed"),
        "truncated": cost.get("truncated", 0),
        "stopped_by_string": cost.get("stopped_by_string", 0),
        "tokens": cost["tokens"] / drawn if drawn else None,
        "reasoning_tokens": cost["reasoning_tokens"] / drawn
        if cost.get("reasoning_tokens")
        else None,
        "quantization_difference": cost.get("quantization_difference"),
    }


def _reasons(step: Ancestor, what: str) -> dict[str, int]:
    """Of the rows in `dropped.parquet` or `failed.parquet`."""
    count, listed = step.cost.get(what, 0), step.path / f"{what}.parquet"
    if not count:
        return {}
    return (
        dict(sorted(read_table(listed)["reason"].value_counts().rows()))
        if listed.exists()
        else {PRUNED: count}
    )


def _rounds_first(draw: dict[str, Any]) -> tuple[bool, int, int]:
    """Exams follow in the order in which they came."""
    examined = isinstance(draw["label"], str)
    return examined, 0 if examined else draw["label"], draw["wave"]
