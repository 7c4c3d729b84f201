"""Prompts in the shapes people have, as rows `prompt_id, prompt` (messages) and `columns` (the rest of the row)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.config import JsonlPrompts
from pipeline.sources.jsonl import Lines, message_fault, read_jsonl


def read_prompts(cfg: JsonlPrompts) -> Lines:
    """`{"prompt": text or messages, "system"?: text, "id"?: …, any column that a scorer or a slice needs}` a line."""
    seen: set[str] = set()

    def check(row: dict[str, Any]) -> str | None:
        fault = _fault(row)
        if fault is None and row.get("id") is not None:
            if str(row["id"]) in seen:
                return f"id {row['id']!r} stands on an earlier line already"
            seen.add(str(row["id"]))
        return fault

    lines = read_jsonl(Path(cfg.path), check, cfg.on_bad_row, "prompts.on_bad_row")
    lines.rows = [_row(row) for row in lines.rows]
    return lines


def prompt_row(messages: list[dict[str, str]], columns: dict[str, Any], given: Any = None) -> dict[str, Any]:
    """One row of the `prompts` table; without an id of its own a prompt is named by the hash of its messages."""
    text = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {
        "prompt_id": digest[:16] if given is None else str(given),
        "prompt": [{"role": m["role"], "content": m["content"]} for m in messages],
        "columns": json.dumps(columns, sort_keys=True, ensure_ascii=False),
        "hash": digest,
    }


def text_of(messages: list[dict[str, str]]) -> str:
    """What is compared with evaluation prompts: the user's words."""
    return "\n".join(m["content"] for m in messages if m["role"] == "user")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    prompt, system, given = row.pop("prompt"), row.pop("system", None), row.pop("id", None)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    return prompt_row(messages, row, given)


def _fault(row: dict[str, Any]) -> str | None:
    if "prompt" not in row:
        return f"no field 'prompt' (it has: {', '.join(sorted(row)) or 'none'})"
    prompt = row["prompt"]
    if "system" in row and not isinstance(row["system"], str | None):
        return "'system' is not text"
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"
    if not isinstance(prompt, list) or not prompt:
        return "'prompt' is neither text nor a list of messages"
    if fault := message_fault(prompt):
        return fault
    if row.get("system") and prompt[0]["role"] == "system":
        return "has both 'system' and a system message"
    return (
        None if prompt[-1]["role"] == "user" and prompt[-1]["content"].strip() else "the last message is not the user's"
    )
