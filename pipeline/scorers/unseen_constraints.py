"""Checks of the constraints in conf/benchmark/unseen_constraints.jsonl, none of them IFEval's.

A model that was trained on IFEval's families of constraints may follow those and no others. The
questions are for evaluation alone: training on them would end what they measure.
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from pipeline.text import strip_reasoning

Constraint = dict[str, Any]

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
NUMBER = re.compile(r"(?<![\w.,])\d+(?:\.\d+)?(?!\w)")
PICTURE = "[\U0001f300-\U0001f3fa\U0001f400-\U0001faff\u2600-\u27bf\u2b50\u2b55]"
SKIN_OR_STYLE = "[\U0001f3fb-\U0001f3ff\ufe0f]?"
# Flags are two letters; a family is several pictures, joined.
EMOJI = re.compile(
    f"[\U0001f1e6-\U0001f1ff]{{2}}|{PICTURE}{SKIN_OR_STYLE}(?:\u200d{PICTURE}{SKIN_OR_STYLE})*"
)
FIRST_PERSON = {"i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves"}


def check_unseen_constraints(completion: str, columns: Mapping[str, Any]) -> dict[str, float]:
    """The share of the prompt's constraints that the answer obeys, and whether it obeys all.

    Without words it obeys none.
    """
    text = strip_reasoning(completion)
    has_words = WORD.search(text) is not None
    obeyed = [has_words and CHECKS[each["kind"]](text, each) for each in columns["constraints"]]
    return {"": sum(obeyed) / len(obeyed), "all": float(all(obeyed))}


def _begins_with_next_letter(text: str, constraint: Constraint) -> bool:
    """The sentences begin with consecutive letters."""
    first = ord(constraint["letter"])
    wanted = [chr(first + step) for step in range(constraint["count"])]
    return [_first_letter(sentence) for sentence in _split_sentences(text)] == wanted


def _repeats_no_word(text: str, constraint: Constraint) -> bool:
    words = _list_words(text)
    return len(words) >= constraint["min"] and len(set(words)) == len(words)


def _has_exact_length(text: str, constraint: Constraint) -> bool:
    return len(_list_words(text)) == constraint["count"]


def _alternates_case(text: str, constraint: Constraint) -> bool:
    """Capitals, small letters, capitals …: the first word decides nothing."""
    words = WORD.findall(text)
    fits = all(word in (word.upper(), word.lower()) for word in words)
    return fits and all(_is_upper(a) != _is_upper(b) for a, b in pairwise(words))


def _has_emojis(text: str, constraint: Constraint) -> bool:
    return len(EMOJI.findall(text)) == constraint["count"]


def _avoids_first_person(text: str, constraint: Constraint) -> bool:
    parts = {part for word in _list_words(text) for part in re.split(r"['’-]", word)}
    return not parts & FIRST_PERSON


def _has_palindromes(text: str, constraint: Constraint) -> bool:
    found = {word for word in _list_words(text) if len(word) > 2 and word == word[::-1]}
    return len(found) >= constraint["min"]


def _has_rising_numbers(text: str, constraint: Constraint) -> bool:
    numbers = [float(number) for number in NUMBER.findall(text)]
    return len(numbers) >= constraint["min"] and all(a < b for a, b in pairwise(numbers))


def _alternates_length(text: str, constraint: Constraint) -> bool:
    """A short sentence, a long one, and so on."""
    lengths = [len(_list_words(sentence)) for sentence in _split_sentences(text)]
    short, long = lengths[::2], lengths[1::2]
    fits = all(n <= constraint["short"] for n in short) and all(
        n >= constraint["long"] for n in long
    )
    return len(lengths) == constraint["count"] and fits


def _has_word_at(text: str, constraint: Constraint) -> bool:
    words, place = _list_words(text), constraint["place"]
    return len(words) >= place and words[place - 1] == constraint["word"]


def _ends_sentences_with(text: str, constraint: Constraint) -> bool:
    ends = [_list_words(sentence)[-1:] for sentence in _split_sentences(text)]
    fits = all(words and words[0].endswith(constraint["letter"]) for words in ends)
    return len(ends) >= constraint["min"] and fits


def _avoids_initial(text: str, constraint: Constraint) -> bool:
    words = _list_words(text)
    fits = not any(word.startswith(constraint["letter"]) for word in words)
    return len(words) >= constraint["min"] and fits


def _grows_by_line(text: str, constraint: Constraint) -> bool:
    """One word in the first line, two in the second, and so on."""
    lengths = [len(_list_words(line)) for line in _split_lines(text)]
    return lengths == list(range(1, constraint["count"] + 1))


def _asks_only(text: str, constraint: Constraint) -> bool:
    sentences = _split_sentences(text)
    fits = all(sentence.endswith("?") for sentence in sentences)
    return len(sentences) == constraint["count"] and fits


def _keeps_words_short(text: str, constraint: Constraint) -> bool:
    words = _list_words(text)
    fits = all(len(word) <= constraint["max"] for word in words)
    return len(words) >= constraint["min"] and fits


def _has_hyphens(text: str, constraint: Constraint) -> bool:
    return len({word for word in _list_words(text) if "-" in word}) >= constraint["min"]


def _ends_as_it_begins(text: str, constraint: Constraint) -> bool:
    words = _list_words(text)
    return len(words) >= constraint["min"] and words[0] == words[-1]


def _spells_by_line(text: str, constraint: Constraint) -> bool:
    letters = [_first_letter(line) for line in _split_lines(text)]
    return "".join(letters) == constraint["word"]


def _has_one_comma_each(text: str, constraint: Constraint) -> bool:
    sentences = _split_sentences(text)
    fits = all(sentence.count(",") == 1 for sentence in sentences)
    return len(sentences) >= constraint["min"] and fits


CHECKS: Mapping[str, Callable[[str, Constraint], bool]] = {
    "next_letter": _begins_with_next_letter,
    "no_repeated_word": _repeats_no_word,
    "exact_words": _has_exact_length,
    "alternating_case": _alternates_case,
    "emojis": _has_emojis,
    "no_first_person": _avoids_first_person,
    "palindromes": _has_palindromes,
    "rising_numbers": _has_rising_numbers,
    "alternating_length": _alternates_length,
    "word_at": _has_word_at,
    "sentence_endings": _ends_sentences_with,
    "banned_initial": _avoids_initial,
    "staircase": _grows_by_line,
    "only_questions": _asks_only,
    "short_words": _keeps_words_short,
    "hyphens": _has_hyphens,
    "same_ends": _ends_as_it_begins,
    "acrostic": _spells_by_line,
    "one_comma": _has_one_comma_each,
}


def _list_words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _split_sentences(text: str) -> list[str]:
    """A sentence ends with . ! or ? before a space or the end; what has no word is none."""
    parts = re.split(r"(?<=[.!?])\s+", text)
    return [part for part in parts if WORD.search(part)]


def _split_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if WORD.search(line)]


def _first_letter(text: str) -> str:
    return next((sign.upper() for sign in text if sign.isalpha()), "")


def _is_upper(word: str) -> bool:
    return word == word.upper()
