"""Which of IFEval's verifiable instructions exclude each other, by family and by what they ask.

Two questions: whether two families go together at all, for prompts that are generated, and whether
the instructions of a given prompt contradict each other, so that no answer follows them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeGuard

from pipeline.errors import pluralize

Arguments = Mapping[str, Any]
Constraints = Sequence[tuple[str, Arguments]]  # family and arguments

EXISTENCE, FREQUENCY = "keywords:existence", "keywords:frequency"
FORBIDDEN, LETTERS = "keywords:forbidden_words", "keywords:letter_frequency"
LANGUAGE = "language:response_language"
SENTENCES, WORDS = "length_constraints:number_sentences", "length_constraints:number_words"
PARAGRAPHS = "length_constraints:number_paragraphs"
FIRST_WORD = "length_constraints:nth_paragraph_first_word"
PLACEHOLDERS, POSTSCRIPT = "detectable_content:number_placeholders", "detectable_content:postscript"
BULLETS, OPTIONS = "detectable_format:number_bullet_lists", "detectable_format:constrained_response"
HIGHLIGHTS = "detectable_format:number_highlighted_sections"
SECTIONS, JSON = "detectable_format:multiple_sections", "detectable_format:json_format"
TITLE = "detectable_format:title"
TWICE, REPEAT = "combination:two_responses", "combination:repeat_prompt"
ENDING, QUOTED = "startend:end_checker", "startend:quotation"
CAPITAL_WORDS = "change_case:capital_word_frequency"
UPPER, LOWER = "change_case:english_capital", "change_case:english_lowercase"
NO_COMMA = "punctuation:no_comma"

# Families that shape the whole answer, and the few that join them.
JOINED_BY: Mapping[str, set[str]] = {
    OPTIONS: set(),
    JSON: {EXISTENCE, FORBIDDEN},
    TWICE: {EXISTENCE, FORBIDDEN, LANGUAGE, TITLE, NO_COMMA},
    REPEAT: {EXISTENCE, TITLE, NO_COMMA},
}
# lm-eval's INSTRUCTION_CONFLICTS, and after the blank line what follows from its checkers or
# reads badly together.
APART = {
    frozenset((one, other))
    for one, others in {
        LANGUAGE: (SECTIONS, EXISTENCE, FREQUENCY, FORBIDDEN, ENDING, UPPER, LOWER),
        PARAGRAPHS: (FIRST_WORD, SENTENCES),
        SECTIONS: (HIGHLIGHTS,),
        CAPITAL_WORDS: (UPPER, LOWER),
        UPPER: (LOWER,),
        QUOTED: (TITLE,),
    }.items()
    for other in others
} | {
    frozenset((one, other))
    for one, others in {
        # Scripts and words of another language.
        LANGUAGE: (LETTERS, FIRST_WORD, CAPITAL_WORDS),
        # The marker `Section 1` has letters of both cases.
        SECTIONS: (UPPER, LOWER, SENTENCES, PARAGRAPHS, FIRST_WORD),
        # The divider *** is made of the sign that highlights.
        PARAGRAPHS: (HIGHLIGHTS, BULLETS),
        FIRST_WORD: (TITLE, SENTENCES, BULLETS),
        ENDING: (POSTSCRIPT,),
        # A bullet after the opening quotation mark does not begin its line.
        BULLETS: (SENTENCES, HIGHLIGHTS, QUOTED),
        LETTERS: (SENTENCES, WORDS, CAPITAL_WORDS, UPPER),
    }.items()
    for other in others
}
MAX_WORDS = 100  # of one sentence, in what a person may be asked to read
# What counts the parts of an answer, none of which has less than a word.
COUNTED = {
    SENTENCES: "num_sentences",
    BULLETS: "num_bullets",
    PARAGRAPHS: "num_paragraphs",
    FIRST_WORD: "num_paragraphs",
    SECTIONS: "num_sections",
}
REQUIRED_TEXT = {
    FREQUENCY: "keyword",
    FIRST_WORD: "first_word",
    ENDING: "end_phrase",
    REPEAT: "prompt_to_repeat",
}
SHOWN = 60  # letters of a text, in an error
AT_LEAST, LESS_THAN = "at least", "less than"


def go_together(one: str, other: str) -> bool:
    """Whether a generated prompt may have both families."""
    for family, joined in JOINED_BY.items():
        if family in (one, other) and ({one, other} - {family}) - joined:
            return False
    return one != other and frozenset((one, other)) not in APART


def find_contradiction(names: Any, arguments: Any) -> str | None:
    """Why no answer can follow all of a prompt's instructions; None if one may.

    Only IFEval's families are known here. Columns of another shape are left to their scorer.
    """
    constraints = _read_constraints(names, arguments)
    for name, given in constraints:
        if fault := _find_impossible(name, given):
            return fault
    for one, other in combinations(constraints, 2):
        for first, second in ((one, other), (other, one)):
            if fault := _contradict(*first, *second):
                return fault
    return None


def _read_constraints(names: Any, arguments: Any) -> Constraints:
    if not isinstance(names, list) or not isinstance(arguments, list):
        return []
    pairs = zip(names, arguments, strict=False)
    return [
        (name, given) for name, given in pairs if isinstance(name, str) and isinstance(given, dict)
    ]


def _find_impossible(name: str, given: Arguments) -> str | None:
    if name in (WORDS, SENTENCES) and _upper_limit(name, given) == 0:
        return f"it asks for less than one of {name.removeprefix('length_constraints:number_')}"
    if name == FIRST_WORD:
        nth, count = given.get("nth_paragraph"), given.get("num_paragraphs")
        if _is_count(nth) and _is_count(count) and nth > count:
            return f"it asks for paragraph {nth} of {count}"
    return None


def _contradict(one: str, given: Arguments, other: str, also: Arguments) -> str | None:
    """Why two instructions exclude each other, seen from the first one."""
    if one == UPPER and other == LOWER:
        return "it asks for capital letters alone and for small letters alone"
    if one in (UPPER, LOWER):
        return _contradict_case(one, other, also)
    if one == FORBIDDEN:
        return _contradict_forbidden(given, other, also)
    required = list(_required_texts(other, also))
    if one == NO_COMMA and (with_comma := [text for text in required if "," in text]):
        return f"it forbids commas and requires {with_comma[0][:SHOWN]!r}"
    if (one, other) == (QUOTED, REPEAT) and required and not required[0].strip().startswith('"'):
        return "its answer begins with a quotation mark and with the request, which has none"
    if one == LETTERS and (limit := _upper_limit(one, given)) is not None:
        letter, times = str(given.get("letter")), also.get("frequency")
        once = sum(text.lower().count(letter.lower()) for text in required)
        needed = once * (times if _is_count(times) else 1)
        if needed > limit:
            return f"it asks for at most {limit} letters {letter!r}, and for words with {needed}"
    return _contradict_counts(one, given, other, also)


def _contradict_case(one: str, other: str, also: Arguments) -> str | None:
    letters = "capital" if one == UPPER else "small"
    if other == LANGUAGE and also.get("language") not in (None, "en"):
        return f"it asks for English in {letters} letters and for the language {also['language']}"
    marker = str(also.get("section_spliter") or "")
    if other == SECTIONS and marker != (marker.upper() if one == UPPER else marker.lower()):
        return f"it asks for {letters} letters alone and for sections marked {marker}"
    needed = also.get("capital_frequency")
    if one == LOWER and other == CAPITAL_WORDS and needed and _is_lower(also, "capital_relation"):
        return f"it asks for small letters alone and for {needed} words in capital letters"
    return None


def _contradict_forbidden(given: Arguments, other: str, also: Arguments) -> str | None:
    forbidden = {word.casefold() for word in _list_texts(given.get("forbidden_words"))}
    # The checker forbids whole words alone, so that a longer required text may contain one.
    required = {text.casefold(): text for text in _required_texts(other, also)}
    if both := sorted(forbidden & required.keys()):
        return f"it requires and forbids the word {required[both[0]]!r}"
    return None


def _required_texts(name: str, given: Arguments) -> Iterator[str]:
    """Texts that an answer must contain."""
    if name == EXISTENCE:
        yield from _list_texts(given.get("keywords"))
    key = REQUIRED_TEXT.get(name, "")
    if given.get(key) and (name != FREQUENCY or _is_lower(given)):
        yield str(given[key])


def _list_texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _contradict_counts(one: str, given: Arguments, other: str, also: Arguments) -> str | None:
    """An upper limit of the first that a lower limit of the second exceeds."""
    limit, needed = _upper_limit(one, given), _lower_limit(other, also)
    if limit is None or needed is None:
        return None
    same_text = [each.get("keyword") or each.get("letter") for each in (given, also)]
    if one == other and same_text[0] == same_text[1] and needed > limit:
        return f"it asks for at least {needed} and for at most {limit} of {one}"
    if (one, other) == (SENTENCES, WORDS) and needed > MAX_WORDS * limit:
        return f"it asks for at least {needed} words in at most {pluralize(limit, 'sentence')}"
    if one == WORDS and other in COUNTED and needed > limit:
        return f"it asks for at most {limit} words and for {needed} of {other}"
    return None


def _upper_limit(name: str, given: Arguments) -> int | None:
    key, relation = _count_keys(name)
    count = given.get(key)
    if name in (PARAGRAPHS, BULLETS, FIRST_WORD):
        return count if _is_count(count) else None
    is_upper = given.get(relation) == LESS_THAN
    return count - 1 if is_upper and _is_count(count) else None


def _lower_limit(name: str, given: Arguments) -> int | None:
    key, relation = _count_keys(name)
    count = given.get(key)
    has_relation = name in (WORDS, SENTENCES, FREQUENCY, LETTERS)
    is_lower = _is_lower(given, relation) if has_relation else name in COUNTED
    return count if is_lower and _is_count(count) else None


def _count_keys(name: str) -> tuple[str, str]:
    """The arguments with a family's number and with its relation."""
    if name == LETTERS:
        return "let_frequency", "let_relation"
    named = {**COUNTED, WORDS: "num_words", FREQUENCY: "frequency"}
    return named.get(name, ""), "relation"


def _is_lower(given: Arguments, relation: str = "relation") -> bool:
    return given.get(relation) == AT_LEAST


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
