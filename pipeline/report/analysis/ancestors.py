"""The steps that the report descends from, by its `step.json` and their manifests."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import MANIFEST_FILE, STEP_FILE


@dataclass(frozen=True)
class Ancestor:
    stage: str
    label: int | str
    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @property
    def seconds(self) -> float | None:
        return self.manifest.get("seconds")

    @property
    def cost(self) -> dict[str, Any]:
        return self.manifest.get("cost") or {}

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest.get("config") or {}


def read_ancestors(out: Path) -> list[Ancestor]:
    """Inputs before their readers; none when a stage is called without a step."""
    file = out / STEP_FILE
    listed = json.loads(file.read_text()).get("ancestors", []) if file.exists() else []
    return [_read_ancestor(each["stage"], each["label"], out / each["path"]) for each in listed]


def list_members(ancestors: Sequence[Ancestor], scorer: str | None) -> tuple[str, ...]:
    """The scorers that an ensemble of this name combined; none for a single scorer."""
    for step in ancestors:
        config = step.config.get("scorers", {}).get(scorer) if step.stage == "score" else None
        if config and config.get("kind") == "ensemble":
            return tuple(sorted({*config["weights"], *config["gates"]}))
    return ()


def _read_ancestor(stage: str, label: int | str, path: Path) -> Ancestor:
    file = path / MANIFEST_FILE
    manifest = json.loads(file.read_text()) if file.exists() else {}
    return Ancestor(stage, label, path, manifest)
