"""The domain metric of course_week: does the answer name the severity that the prompt's row has?"""

import re
from collections.abc import Sequence

NAMED = re.compile(r"^severity: *(low|medium|high|critical)\b", re.IGNORECASE | re.MULTILINE)


def match_severity(
    completions: Sequence[list[dict[str, str]]], severity: Sequence[str], **columns: object
) -> list[float]:
    """1 where they are equal, else 0; an answer arrives as a list of one message."""
    return [
        float(_read_severity(answer[-1]["content"]) == known.lower())
        for answer, known in zip(completions, severity, strict=True)
    ]


def _read_severity(text: str) -> str | None:
    found = NAMED.search(text)
    return found[1].lower() if found else None
