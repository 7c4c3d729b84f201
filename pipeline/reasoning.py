"""What a reasoning model thinks before it answers, which nobody marks."""

import re


def without_reasoning(text: str) -> str:
    """The answer alone: without `<think>…</think>`, without what stands before a lone `</think>` (a template may have
    opened it), and empty where thinking never ended."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()
