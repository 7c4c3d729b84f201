"""Demonstrations for SFT and rehearsal: rows `{"messages": [...]}` that end with an answer.

A row may have `tools`, and its messages calls and results in OpenAI's shape.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config import DemonstrationsConfig
from pipeline.data import synthetic
from pipeline.data.decontamination import OverlapCheck
from pipeline.data.drop_log import BAD_ROW, DropLog
from pipeline.data.jsonl import Lines, find_unwritable, read_jsonl
from pipeline.data.readers import RowFault
from pipeline.data.tool_turns import add_tools, is_answer, pack_messages, split_answer, to_text
from pipeline.errors import UnrenderableTemplate, UserError

Row = dict[str, Any]
Example = dict[str, list[int]]


def read_demonstrations(cfg: DemonstrationsConfig, knob: str = "sft.data") -> Lines:
    if cfg.kind == "playground":
        return Lines(rows=list(synthetic.generate_demonstrations(cfg)))
    lines = read_jsonl(Path(cfg.path), _find_fault, cfg.on_bad_row, f"{knob}.on_bad_row")
    lines.rows = [{**row, "messages": _read_messages(row)} for row in lines.rows]
    return lines


def encode_demonstrations(
    lines: Lines,
    encode: Callable[[list[Row]], Example],
    check: OverlapCheck,
    max_length: int,
    cfg: DemonstrationsConfig,
    knob: str = "sft.data",
    stage: str = "sft",
) -> tuple[list[Example], DropLog]:
    """The demonstrations that may be trained on, and the dropped ones with their reasons.

    Reasons are published and name the stage; where its block is mounted is outside identity.
    """
    examples, log = [], DropLog(len(lines.rows) + len(lines.bad), row=pl.String)
    for number, fault in lines.bad:
        log.drop(BAD_ROW, fault, row=f"line {number}")
    for number, row in enumerate(lines.rows, 1):
        try:
            example = encode(row["messages"])
        except UnrenderableTemplate as error:
            detail = _template_fault(cfg, knob, number, error)
            log.drop(BAD_ROW, detail, row=f"row {number}")
            continue
        length = len(example["prompt_ids"]) + len(example["completion_ids"])
        if any(check.overlaps(message["content"]) for message in row["messages"]):
            log.drop("overlap with evaluation", check.fault, row=f"row {number}")
        elif length > max_length:
            detail = f"{length} tokens, {stage}.max_length is {max_length}"
            log.drop("too long", detail, row=f"row {number}")
        else:
            examples.append(example)
    return examples, log


def _template_fault(cfg: DemonstrationsConfig, knob: str, number: int, error: UserError) -> str:
    """Roles that this model's template does not take make a bad row for this model."""
    if cfg.kind == "playground" or cfg.on_bad_row == "fail":
        raise UserError(
            f"{knob}: row {number}: {error}\n"
            f"  Or skip and count such rows with {knob}.on_bad_row=skip."
        )
    return str(error).splitlines()[0]


def _find_fault(row: Row) -> str | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return "no field 'messages' with a list of at least a question and its answer"
    try:
        messages = _read_messages(row)
    except RowFault as fault:
        return str(fault)
    _, answer = split_answer(messages)
    if not is_answer(answer) or not to_text(answer).strip():
        return "the last message is not an answer of the assistant"
    if not any(message["role"] == "user" for message in messages):
        return "no message is the user's"
    return find_unwritable(messages)


def _read_messages(row: Row) -> list[dict[str, str]]:
    return add_tools(pack_messages(row["messages"]), row.get("tools"))
