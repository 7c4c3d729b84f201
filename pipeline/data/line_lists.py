"""Lists of texts that a config holds itself or has in a file."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Local
from pipeline.errors import UserError


def read_list(listed: Sequence[str] | Local, knob: str, item: str, example: str) -> list[str]:
    """In a file one is on a line; blank lines and those that begin with # are skipped.

    `item` is what one of them is, `example` what may be given in the place of a file.
    """
    if not isinstance(listed, Local):
        return [*listed]
    try:
        lines = [line.strip() for line in Path(listed).expanduser().read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{knob}={listed}: cannot be read ({error}).\n"
            f"  Give a text file with one {item} a line, or {example}."
        ) from error
    if found := [line for line in lines if line and not line.startswith("#")]:
        return found
    raise UserError(f"{knob}={listed}: it lists no {item}.\n  Write one a line, or give {example}.")
