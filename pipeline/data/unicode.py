"""Texts as they are compared: without case, and independent of their encoding."""

import sys
import unicodedata
from typing import Literal

# Soft hyphens, joiners, direction controls and the like: invisible leftovers of web pages and PDFs.
_INVISIBLE = dict.fromkeys(
    code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"
)


def fold_text(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """NFC keeps apart what NFKC makes equal: x² and x2, wide letters, ligatures."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize(form, text.translate(_INVISIBLE)).casefold()
