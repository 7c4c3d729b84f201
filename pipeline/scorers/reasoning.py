"""Answers without their reasoning, for scorers that should judge what the user reads."""

import re

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def without_reasoning(text: str) -> str:
    """Neither closed nor unclosed thoughts, nor one that the prompt had opened already."""
    opened_before = text.find("</think>")
    if opened_before >= 0 and "<think>" not in text[:opened_before]:
        text = text[opened_before + len("</think>") :]
    return _THOUGHT.sub("", text).strip()
