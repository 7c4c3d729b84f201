"""Letters as they are compared: without case, and whatever way they are stored in."""

import sys
import unicodedata
from typing import Literal

# Soft hyphens, joiners, marks of direction and the like: pages and PDFs bring them, and nobody sees them.
_UNSEEN = dict.fromkeys(
    code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"
)


def folded(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """NFC keeps what NFKC takes for one: x² and x2, wide letters, ligatures."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize(form, text.translate(_UNSEEN)).casefold()
