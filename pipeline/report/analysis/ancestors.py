"""The steps that the report descends from: `step.json` lists their folders, each manifest says what it was and cost."""

import json
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


def ancestors_of(out: Path) -> list[Ancestor]:
    """Inputs before what reads them; none when a stage is called without a step."""
    listing = out / STEP_FILE
    listed = json.loads(listing.read_text()).get("ancestors", []) if listing.exists() else []
    return [_ancestor(each["stage"], each["label"], out / each["path"]) for each in listed]


def _ancestor(stage: str, label: int | str, path: Path) -> Ancestor:
    manifest = path / MANIFEST_FILE
    return Ancestor(
        stage, label, path, json.loads(manifest.read_text()) if manifest.exists() else {}
    )
