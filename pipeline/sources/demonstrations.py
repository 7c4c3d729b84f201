"""Demonstrations for SFT: rows `{"messages": [...]}` that end with an answer, and the broken lines of a file."""

from pathlib import Path
from typing import Any

from pipeline.config import DemonstrationsConfig
from pipeline.sources import playground
from pipeline.sources.jsonl import Lines, message_fault, read_jsonl


def read_demonstrations(cfg: DemonstrationsConfig) -> Lines:
    if cfg.kind == "playground":
        return Lines(rows=list(playground.demonstrations(cfg)))
    return read_jsonl(Path(cfg.path), _fault, cfg.on_bad_row, "sft.data.on_bad_row")


def _fault(row: dict[str, Any]) -> str | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return "no field 'messages' with a list of at least a question and its answer"
    if fault := message_fault(messages):
        return fault
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        return "the last message is not an answer of the assistant"
    return None if any(m["role"] == "user" for m in messages) else "no message is the user's"
