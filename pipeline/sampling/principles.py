"""The principles by which answers are revised."""

from pipeline.config import Revision, RevisionRequest
from pipeline.data.line_lists import read_list
from pipeline.hashing import hash_json


def read_principles(cfg: Revision, knob: str) -> list[str]:
    example = "a list: ['Is it honest?', …]"
    return read_list(cfg.principles, f"{knob}.principles", "principle", example)


def draw_principle(cfg: RevisionRequest, principles: list[str], prompt_id: str) -> str:
    """The same in both turns of a prompt."""
    number = int(hash_json([cfg.seed, "principle", prompt_id])[:8], 16)
    return principles[number % len(principles)]
