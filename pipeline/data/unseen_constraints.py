"""Writes conf/benchmark/unseen_constraints.jsonl: `python -m pipeline.data.unseen_constraints`.

300 requests with one or two constraints that IFEval does not have. The file is fixed, so that
models of different runs are asked the same; a run reads the file alone.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "conf" / "benchmark" / "unseen_constraints.jsonl"
ROWS, SEED = 300, 20261129

REQUESTS = [
    "Tell me about {}.",
    "Describe {} to somebody who has never seen anything of the kind.",
    "Write a short diary entry about {}.",
    "What should a beginner know about {}?",
    "Write a little scene in which {} plays a part.",
    "Give me a reason to care about {}.",
    "Explain to a child what is special about {}.",
    "Write a note to a friend about {}.",
    "Draft a notice for a town square about {}.",
    "Write the opening of a radio talk on {}.",
]
TOPICS = [
    "a lighthouse in winter", "the night train to the coast", "sourdough bread",
    "a street musician", "the first snow of the year", "an old apple orchard",
    "repairing a bicycle", "a museum after closing time", "the smell of rain",
    "a lost umbrella", "sea turtles", "a village library", "learning to juggle",
    "the history of chess", "a rooftop garden", "bees and their hives", "a broken clock",
    "the northern lights", "market day", "a chess player on a ferry", "growing tomatoes",
    "a lamp that flickers", "the sound of an empty theatre", "moss", "a long staircase",
    "a postcard without a name", "ice skating", "the taste of lemons", "a stray cat",
    "building a kite",
]  # fmt: skip
PLACED_WORDS = ["river", "silver", "morning", "window", "yellow"]
SPELLED_WORDS = ["STONE", "MAPLE", "CLOUD", "BREAD", "TIGER"]

Made = tuple[dict[str, Any], list[str]]  # a constraint, and ways to say it


def make_rows() -> Iterator[dict[str, Any]]:
    draw, seen = random.Random(SEED), set[str]()
    kinds = list(MAKERS)
    while len(seen) < ROWS:
        # By turns, so that every constraint comes equally often as the first.
        chosen = [kinds[len(seen) % len(kinds)]]
        if chosen[0] in SHAPES_OF_TEXT and draw.random() < 0.6:
            chosen.append(draw.choice(DETAILS))
        constraints, sentences = [], []
        for kind in chosen:
            constraint, ways = MAKERS[kind](draw)
            constraints.append({"kind": kind, **constraint})
            sentences.append(draw.choice(ways))
        request = draw.choice(REQUESTS).format(draw.choice(TOPICS))
        prompt = " ".join([request, *sentences])
        if prompt not in seen:
            seen.add(prompt)
            yield {"id": f"unseen-{len(seen):03d}", "prompt": prompt, "constraints": constraints}


def _make_next_letter(draw: random.Random) -> Made:
    first, count = draw.choice("ABCDEGLMOPRST"), draw.randint(3, 5)
    letters = ", ".join(chr(ord(first) + step) for step in range(count))
    return {"letter": first, "count": count}, [
        f"Use {count} sentences, and let them begin with the letters {letters}, in this order.",
        f"Your {count} sentences have to start with {letters}, one letter each.",
    ]


def _make_no_repeated_word(draw: random.Random) -> Made:
    least = draw.choice([12, 15, 20])
    return {"min": least}, [
        f"Use at least {least} words and never the same word twice, not even small ones.",
        f"No word may come up a second time, and I want {least} words or more.",
    ]


def _make_exact_words(draw: random.Random) -> Made:
    count = draw.randint(9, 30)
    return {"count": count}, [
        f"The whole answer has exactly {count} words, no more and no fewer.",
        f"Spend precisely {count} words on it.",
    ]


def _make_alternating_case(draw: random.Random) -> Made:
    return {}, [
        "Switch with every word: one in CAPITALS, the next in small letters, and so on.",
        "Alternate, word by word, between all capitals and all small letters.",
    ]


def _make_emojis(draw: random.Random) -> Made:
    count = draw.randint(2, 5)
    return {"count": count}, [
        f"Put exactly {count} emojis into the answer.",
        f"There should be {count} emojis in it, not one more.",
    ]


def _make_no_first_person(draw: random.Random) -> Made:
    return {}, [
        "Leave out I, me, my, we, us, our and all other words for the first person.",
        "No one in the text may speak of themselves: no I, no we, no my and no our.",
    ]


def _make_palindromes(draw: random.Random) -> Made:
    least = draw.choice([1, 2])
    words = "a word" if least == 1 else "two different words"
    return {"min": least}, [
        f"Work in {words} of three letters or more that read the same backwards.",
        f"Hide {words} in it that can be read from both ends, such as the name Otto.",
    ]


def _make_rising_numbers(draw: random.Random) -> Made:
    least = draw.randint(3, 5)
    return {"min": least}, [
        f"Mention {least} numbers or more, in digits, each larger than the one before.",
        f"Numbers have to grow as the text goes along; use at least {least}, written in digits.",
    ]


def _make_alternating_length(draw: random.Random) -> Made:
    count, short, long = draw.choice([4, 6]), draw.choice([4, 5]), draw.choice([9, 11])
    return {"count": count, "short": short, "long": long}, [
        f"Write {count} sentences by turns: one of at most {short} words, then one of at least"
        f" {long}.",
        f"Of the {count} sentences, the odd ones have no more than {short} words and the even ones"
        f" no fewer than {long}.",
    ]


def _make_word_at(draw: random.Random) -> Made:
    word, place = draw.choice(PLACED_WORDS), draw.randint(4, 12)
    return {"word": word, "place": place}, [
        f'Word number {place} of the answer has to be "{word}".',
        f'Counting from the start, let the {place}th word be "{word}".',
    ]


def _make_sentence_endings(draw: random.Random) -> Made:
    letter, least = draw.choice("denrsty"), draw.randint(2, 4)
    return {"letter": letter, "min": least}, [
        f"Write {least} sentences or more; the last word of each ends in the letter {letter}.",
        f"Close every sentence, of {least} at least, with a word whose last letter is {letter}.",
    ]


def _make_banned_initial(draw: random.Random) -> Made:
    letter, least = draw.choice("abcmstw"), draw.choice([15, 20, 25])
    return {"letter": letter, "min": least}, [
        f"In {least} words or more, let no word begin with the letter {letter}.",
        f"Words that start with {letter} are not allowed, and {least} words are the minimum.",
    ]


def _make_staircase(draw: random.Random) -> Made:
    count = draw.randint(4, 7)
    return {"count": count}, [
        f"Shape it as a staircase of {count} lines: one word in the first line, two in the second,"
        " and one more in each line after that.",
        f"Give {count} lines, where line one has a single word and every next line has one more.",
    ]


def _make_only_questions(draw: random.Random) -> Made:
    count = draw.randint(3, 5)
    return {"count": count}, [
        f"Answer in {count} sentences, all of them questions.",
        f"Say it with {count} questions and nothing besides.",
    ]


def _make_short_words(draw: random.Random) -> Made:
    most, least = draw.choice([5, 6]), draw.choice([12, 18])
    return {"max": most, "min": least}, [
        f"Keep to words of {most} letters at most, and use {least} words or more.",
        f"No word may be longer than {most} letters; {least} words are the least.",
    ]


def _make_hyphens(draw: random.Random) -> Made:
    least = draw.randint(2, 4)
    return {"min": least}, [
        f"Use at least {least} different words with a hyphen, such as well-known.",
        f"Let {least} or more different hyphenated words appear.",
    ]


def _make_same_ends(draw: random.Random) -> Made:
    least = draw.choice([8, 12])
    return {"min": least}, [
        f"Begin and end with the very same word, with {least} words or more in all.",
        f"In at least {least} words, come back at the end to the word you began with.",
    ]


def _make_acrostic(draw: random.Random) -> Made:
    word = draw.choice(SPELLED_WORDS)
    return {"word": word}, [
        f"Write {len(word)} lines whose first letters, read downwards, spell {word}.",
        f"Make it an acrostic: {len(word)} lines, and their initials give the word {word}.",
    ]


def _make_one_comma(draw: random.Random) -> Made:
    least = draw.randint(2, 4)
    return {"min": least}, [
        f"Write {least} sentences or more, each with exactly one comma.",
        f"Every sentence takes one comma, neither more nor less; write at least {least}.",
    ]


MAKERS: dict[str, Callable[[random.Random], Made]] = {
    "next_letter": _make_next_letter,
    "no_repeated_word": _make_no_repeated_word,
    "exact_words": _make_exact_words,
    "alternating_case": _make_alternating_case,
    "emojis": _make_emojis,
    "no_first_person": _make_no_first_person,
    "palindromes": _make_palindromes,
    "rising_numbers": _make_rising_numbers,
    "alternating_length": _make_alternating_length,
    "word_at": _make_word_at,
    "sentence_endings": _make_sentence_endings,
    "banned_initial": _make_banned_initial,
    "staircase": _make_staircase,
    "only_questions": _make_only_questions,
    "short_words": _make_short_words,
    "hyphens": _make_hyphens,
    "same_ends": _make_same_ends,
    "acrostic": _make_acrostic,
    "one_comma": _make_one_comma,
}
# Any of the first can be obeyed together with any of the second.
SHAPES_OF_TEXT = {
    "next_letter", "no_repeated_word", "exact_words", "alternating_case", "alternating_length",
    "staircase", "only_questions", "acrostic", "sentence_endings", "banned_initial",
}  # fmt: skip
DETAILS = ["emojis", "no_first_person", "palindromes", "hyphens"]


def main() -> None:
    FILE.write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    print(FILE)


if __name__ == "__main__":
    main()
