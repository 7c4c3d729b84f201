"""The recipe as the answers fill it, and its YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_LINES = 20


@dataclass
class RecipeDraft:
    """`choices` are files of groups, `blocks` values; the rest is what later questions ask about.

    `parameters`, `rows` and `columns` are None where they could not be looked at. `unnamed` is a
    file of prompts with its columns, while none of them is known to be the prompt.
    """

    choices: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)
    parameters: float | None = None
    rows: int | None = None
    columns: frozenset[str] | None = None
    unnamed: tuple[str, list[str]] | None = None


def write_recipe(recipe: RecipeDraft, file: Path) -> str:
    choices = [f"  - override /{group}: {_write(name)}" for group, name in recipe.choices.items()]
    lines = [
        "# @package _global_",
        f"# strop run --config-dir {file.parent.parent} recipes={file.stem}",
        "defaults:",
        *choices,
        "  - _self_",
        "",
        *(f"{name}: {_write(block)}" for name, block in recipe.blocks.items()),
    ]
    return "\n".join(lines) + "\n"


def _write(value: Any) -> str:
    """A value on one line, as YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
