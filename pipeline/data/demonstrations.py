"""Demonstrations for SFT and rehearsal: rows `{"messages": [...]}` that end with an answer, and the broken lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import DemonstrationsConfig
from pipeline.data import synthetic
from pipeline.data.decontamination import OverlapCheck
from pipeline.data.jsonl import Lines, message_fault, read_jsonl, unwritable
from pipeline.errors import UnrenderableTemplate, UserError

Row = dict[str, Any]
Example = dict[str, list[int]]


def read_demonstrations(cfg: DemonstrationsConfig, knob: str = "sft.data") -> Lines:
    if cfg.kind == "playground":
        return Lines(rows=list(synthetic.demonstrations(cfg)))
    return read_jsonl(Path(cfg.path), _fault, cfg.on_bad_row, f"{knob}.on_bad_row")


def in_tokens(
    lines: Lines,
    encode: Callable[[list[Row]], Example],
    check: OverlapCheck,
    max_length: int,
    cfg: DemonstrationsConfig,
    knob: str = "sft.data",
) -> tuple[list[Example], list[Row]]:
    """Those that may be trained on, and each of the others with its reason."""
    examples = []
    dropped = [_dropped(f"line {number}", "bad row", fault) for number, fault in lines.bad]
    for number, row in enumerate(lines.rows, 1):
        try:
            example = encode(row["messages"])
        except UnrenderableTemplate as refusal:
            detail = _unrendered(cfg, knob, number, refusal)
            dropped.append(_dropped(f"row {number}", "bad row", detail))
            continue
        length = len(example["prompt_ids"]) + len(example["completion_ids"])
        if any(check.overlaps(message["content"]) for message in row["messages"]):
            dropped.append(_dropped(f"row {number}", "overlap with evaluation", check.fault))
        elif length > max_length:
            detail = f"{length} tokens, {knob.partition('.')[0]}.max_length is {max_length}"
            dropped.append(_dropped(f"row {number}", "too long", detail))
        else:
            examples.append(example)
    return examples, dropped


def _unrendered(cfg: DemonstrationsConfig, knob: str, number: int, refusal: UserError) -> str:
    """A row in roles that this model's template does not take is a bad row for this model."""
    if cfg.kind == "playground" or cfg.on_bad_row == "fail":
        raise UserError(
            f"{knob}: row {number}: {refusal}\n  Or skip and count such rows with {knob}.on_bad_row=skip."
        )
    return str(refusal).splitlines()[0]


def _dropped(row: str, reason: str, detail: str) -> Row:
    return {"row": row, "reason": reason, "detail": detail}


def _fault(row: dict[str, Any]) -> str | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return "no field 'messages' with a list of at least a question and its answer"
    if fault := message_fault(messages):
        return fault
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        return "the last message is not an answer of the assistant"
    return (
        unwritable(messages)
        if any(m["role"] == "user" for m in messages)
        else "no message is the user's"
    )
