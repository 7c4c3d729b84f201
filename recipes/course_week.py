"""The domain metric of course_week: does the answer name the severity that the prompt's row has?"""

import re
from collections.abc import Sequence

NAMED = re.compile(r"^severity: *(low|medium|high|critical)\b", re.IGNORECASE | re.MULTILINE)


def match_severity(
    completions: Sequence[str], severity: Sequence[str], **columns: object
) -> list[float]:
    return [
        float(_read_severity(text) == known.lower())
        for text, known in zip(completions, severity, strict=True)
    ]


def _read_severity(text: str) -> str | None:
    found = NAMED.search(text)
    return found[1].lower() if found else None
