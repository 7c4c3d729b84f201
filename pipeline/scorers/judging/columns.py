"""What the prompts' columns give to a judge: reference answers, and rubrics with weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import AnswerJudge, RubricScorer
from pipeline.errors import UserError

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RubricItem:
    criterion: str
    weight: float


@dataclass(frozen=True, slots=True)
class PromptGuide:
    """What one prompt gives to a judge. `missing`: why the judge skips it; empty if it does not."""

    reference: str | None = None
    items: tuple[RubricItem, ...] = ()
    missing: str = ""


def read_guide(
    cfg: AnswerJudge, knob: str, prompt_id: str, columns: Columns, turns: int
) -> PromptGuide:
    """`turns`: how many of the prompt's turns the judged answers go to."""
    reference, items, missing = None, tuple[RubricItem, ...](), ""
    if isinstance(cfg, RubricScorer) and cfg.rubric_column:
        items = read_rubric(
            columns.get(cfg.rubric_column), f"{knob}.rubric_column={cfg.rubric_column}", prompt_id
        )
        missing = "" if items else f"no rubric in the prompt's column {cfg.rubric_column}"
    if cfg.reference_column:
        where = f"{knob}.reference_column={cfg.reference_column}"
        texts = read_references(columns.get(cfg.reference_column), where, prompt_id)[:turns]
        if len(texts) == turns and all(texts):
            reference = join_references(texts)
        elif cfg.without_reference == "skip":
            missing = missing or f"no reference in the prompt's column {cfg.reference_column}"
    return PromptGuide(reference, items, missing)


def count_turns(columns: Columns, messages: Sequence[Mapping[str, str]]) -> int:
    """The turns of a chat benchmark's question up to an answer; 1 for any other prompt."""
    if not columns.get("turns"):
        return 1
    return sum(message["role"] == "user" for message in messages)


def read_references(value: Any, where: str, prompt_id: str) -> list[str]:
    """One for each turn, empty where there is none. Numbers are text; other values are refused."""
    values = value if isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float | None):
            raise UserError(
                f"{where}: the reference of the prompt {prompt_id} is {str(each)[:80]!r}.\n"
                "  Give a text, or a list of texts, one for each turn."
            )
    return ["" if each is None else str(each).strip() for each in values]


def join_references(texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"Reference answer {turn}:\n{text}" for turn, text in enumerate(texts, 1))


def read_rubric(value: Any, where: str, prompt_id: str) -> tuple[RubricItem, ...]:
    """No items for a prompt without a rubric. One without weights is refused."""
    if value is None or value == []:
        return ()
    items = value if isinstance(value, list) else []
    faults = [fault for place, item in enumerate(items, 1) if (fault := _find_fault(place, item))]
    if faults or not items:
        raise UserError(
            f"{where}: the rubric of the prompt {prompt_id} cannot be used:"
            f" {faults[0] if faults else 'it is not a list of items'}.\n"
            '  Give each item as {"criterion": "Names both causes.", "weight": 2},'
            " with a weight above 0."
        )
    return tuple(RubricItem(item["criterion"].strip(), float(item["weight"])) for item in items)


def _find_fault(place: int, item: Any) -> str | None:
    match item:
        case {"criterion": str(text), "weight": bool()} if text.strip():
            return f"the weight of item {place} is not a number"
        case {"criterion": str(text), "weight": int() | float() as weight} if text.strip():
            is_usable = weight > 0 and math.isfinite(weight)
            return None if is_usable else f"the weight of item {place} is {weight}"
        case {"criterion": str(text)} if text.strip():
            return f"item {place} has no weight"
        case _:
            return f"item {place} has no criterion"
