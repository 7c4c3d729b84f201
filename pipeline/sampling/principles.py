"""The principles by which answers are revised."""

from pathlib import Path

from pipeline.config import Local, Revision, RevisionRequest
from pipeline.errors import UserError
from pipeline.hashing import hash_json


def read_principles(cfg: Revision, knob: str) -> list[str]:
    """One a line in a file; blank lines and those that begin with # are skipped."""
    if not isinstance(cfg.principles, Local):
        return cfg.principles
    place = f"{knob}.principles={cfg.principles}"
    try:
        lines = map(str.strip, Path(cfg.principles).expanduser().read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{place}: cannot be read ({error}).\n"
            "  Give a text file with one principle a line, or a list: ['Is it honest?', …]."
        ) from error
    if principles := [line for line in lines if line and not line.startswith("#")]:
        return principles
    raise UserError(f"{place}: it has no principle.\n  Write one a line, or give a list.")


def draw_principle(cfg: RevisionRequest, principles: list[str], prompt_id: str) -> str:
    """The same in both turns of a prompt."""
    number = int(hash_json([cfg.seed, "principle", prompt_id])[:8], 16)
    return principles[number % len(principles)]
