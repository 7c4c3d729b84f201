"""Where the time went: seconds and tokens of every step that the report descends from, summed by stage.

`step.json` lists the ancestors' folders; each manifest says what its step cost when it was built.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.artifacts import MADE_BY


def cost_of(out: Path) -> list[dict[str, Any]]:
    """One row per stage in the order of the main line. Tokens/s are over the whole time, start of engines included."""
    listing = out / "step.json"
    ancestors = json.loads(listing.read_text()).get("ancestors", []) if listing.exists() else []
    steps: dict[str, list[dict[str, Any]]] = {}
    for ancestor in ancestors:
        if (out / ancestor["path"]).resolve() != out.resolve():
            steps.setdefault(ancestor["stage"], []).append(_step(out, ancestor))
    return [_stage(stage, steps[stage]) for stage in MADE_BY if stage in steps]


def _step(out: Path, ancestor: dict[str, Any]) -> dict[str, Any]:
    manifest = out / ancestor["path"] / "manifest.json"
    known = json.loads(manifest.read_text()) if manifest.exists() else {}
    named = {"label": str(ancestor["label"]), "fingerprint": ancestor["fingerprint"]}
    return {**(known.get("cost") or {}), **named, "seconds": known.get("seconds")}


def _stage(stage: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(step["seconds"] or 0.0 for step in steps)
    with_tokens = [step for step in steps if step.get("tokens") is not None]
    tokens = sum(step["tokens"] for step in with_tokens) if with_tokens else None
    busy = sum(step["seconds"] or 0.0 for step in with_tokens)
    speed = tokens / busy if tokens is not None and busy else None
    return {"stage": stage, "seconds": seconds, "tokens": tokens, "tokens_per_second": speed, "steps": steps}
