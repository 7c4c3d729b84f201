"""What is refused once prompts are counted: too few for the splits, no column to cap by.

Loads no library.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.config import PromptCaps, PromptSplit
from pipeline.data.tool_turns import uses_tools
from pipeline.errors import UserError, suggest

TOOL_PROMPTS = 100  # with which a chat template is checked


@dataclass(frozen=True)
class PromptSummary:
    """How many usable rows a set of prompts has, their columns other than the text, and the first.

    The first has its messages as `prompt`, and its other `columns`. `tool_prompts`: with tools.
    `taken`: the columns of a file that the prompt is made of; `columns` leaves them out.
    """

    rows: int
    columns: frozenset[str]
    first: Mapping[str, Any]
    tool_prompts: Sequence[list[dict[str, str]]] = ()
    taken: tuple[str, ...] = ()

    @property
    def prompt_column(self) -> str:
        """`column question`, where a file has the prompt by another name than ours; or nothing."""
        if not self.taken or {*self.taken} <= {"prompt", "messages"}:
            return ""
        return f"column{'s' if self.taken[1:] else ''} {' and '.join(self.taken)}"


def select_tool_prompts(
    prompts: Iterable[list[dict[str, str]]],
) -> list[list[dict[str, str]]]:
    """The first prompt with tools of each order of roles, for checks of chat templates."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for messages in prompts:
        if uses_tools(messages):
            found.setdefault(tuple(message["role"] for message in messages), messages)
    return [*islice(found.values(), TOOL_PROMPTS)]


def check_split(split: PromptSplit, prompts: int) -> None:
    """Refuse splits that can never be filled, before anything is compared."""
    wanted = {name: n for name, n in split if isinstance(n, int)}
    if prompts <= sum(wanted.values()):
        sizes = " and ".join(f"{name} {n}" for name, n in wanted.items())
        knobs = " and ".join(f"prompts.split.{name}" for name in wanted)
        raise UserError(
            f"prompts: there are {prompts}; {sizes} leave nothing to train on.\n"
            f"  Give more prompts, or lower {knobs}."
        )


def check_caps(caps: PromptCaps | None, columns: Collection[str]) -> None:
    if caps and caps.column not in columns:
        known = sorted(columns)
        no_columns = "They have none but their text; give prompts.caps=null."
        hint = suggest(caps.column, known) if known else no_columns
        raise UserError(f"prompts.caps.column={caps.column}: no row has this column. {hint}")
