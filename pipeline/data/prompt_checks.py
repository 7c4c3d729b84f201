"""What prompts are refused for once they are counted: too few for the splits, no column to cap by. Loads nothing."""

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.config import PromptCaps, PromptSplit
from pipeline.errors import UserError, suggest


@dataclass(frozen=True)
class Summary:
    """How many usable rows a set of prompts has, and the columns that some of them have beside their text."""

    rows: int
    columns: frozenset[str]


def check_split(split: PromptSplit, prompts: int) -> None:
    """What can never be enough is said before any comparing."""
    wanted = {name: n for name, n in split if isinstance(n, int)}
    if prompts <= sum(wanted.values()):
        asked = " and ".join(f"{name} {n}" for name, n in wanted.items())
        raise UserError(
            f"prompts: there are {prompts}; {asked} leave nothing to train on.\n"
            f"  Give more prompts, or lower {' and '.join(f'prompts.split.{name}' for name in wanted)}."
        )


def check_caps(caps: PromptCaps | None, columns: Collection[str]) -> None:
    if caps and caps.column not in columns:
        known = sorted(columns)
        hint = (
            suggest(caps.column, known)
            if known
            else "They have none beside their text; give prompts.caps=null."
        )
        raise UserError(f"prompts.caps.column={caps.column}: no row has this column. {hint}")
