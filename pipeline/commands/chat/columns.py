"""Answers in columns of a terminal, and text from a model made safe to print there."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

GAP = " │ "
NARROWEST = 36  # characters of a column that is still pleasant to read
KEPT = {"\n", "\t"}
ZERO_WIDTH = {"Mn", "Me", "Cf"}  # categories of characters that take no room


def make_safe(text: str) -> str:
    """Without control characters: a model's answer must not move the cursor or set a title."""
    return "".join(c for c in text if c in KEPT or unicodedata.category(c) != "Cc")


def fits_columns(count: int, width: int) -> bool:
    return _column_width(count, width) >= NARROWEST


def lay_columns(texts: Sequence[str], width: int) -> Iterator[str]:
    """The lines of a terminal on which these texts are next to each other."""
    column = _column_width(len(texts), width)
    for parts in zip_longest(*(wrap_text(text, column) for text in texts), fillvalue=""):
        padded = [part + " " * (column - measure_width(part)) for part in parts]
        yield GAP.join(padded).rstrip()


def _column_width(count: int, width: int) -> int:
    return (width - len(GAP) * (count - 1)) // count


def wrap_text(text: str, width: int) -> list[str]:
    """Lines no wider than `width`, broken at spaces where there are any."""
    lines = make_safe(text).expandtabs(4).splitlines()
    return [part for line in lines for part in (_wrap_line(line, width) or [""])]


def _wrap_line(line: str, width: int) -> list[str]:
    parts, current = [], ""
    for piece in _cut_words(line, width):
        if measure_width(current + piece) > width:
            parts.append(current.rstrip())
            current = piece.lstrip()
        else:
            current += piece
    return [*parts, current.rstrip()] if current.strip() else parts


def _cut_words(line: str, width: int) -> Iterator[str]:
    """Words, each with the space before it. One that is wider than a line is cut."""
    for number, word in enumerate(line.split(" ")):
        space = " " if number else ""
        while measure_width(word) > width - 1:
            at = _count_fitting(word, width - 1)
            yield space + word[:at]
            word, space = word[at:], ""
        yield space + word


def _count_fitting(word: str, width: int) -> int:
    """How many characters of a word fit; at least one, so that cutting ends."""
    used = 0
    for at, character in enumerate(word):
        used += measure_width(character)
        if used > width:
            return max(at, 1)
    return len(word)


def measure_width(text: Iterable[str]) -> int:
    """The cells that a terminal uses: two for a wide character, none for a combining one."""
    return sum(_measure_character(character) for character in text)


def _measure_character(character: str) -> int:
    if unicodedata.category(character) in ZERO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
