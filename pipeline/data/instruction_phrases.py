"""IFEval's constraint families in words that a person would type, and what each asks for.

A line that begins with `.` is a sentence, with `>` an ending of the task's sentence, with `<` its
beginning. `(one|other)` is either; `{name}` is a value of the constraint. A deeper indent continues
the line above.
"""

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.data import instruction_conflicts as families
from pipeline.data.instruction_conflicts import AT_LEAST, LESS_THAN

SENTENCE, ENDING, BEGINNING = ".", ">", "<"


class Constraint(NamedTuple):
    """A family, IFEval's arguments for it, and the values that its phrases show."""

    family: str
    arguments: dict[str, Any]
    phrases: dict[str, list[str]]
    shown: dict[str, str]


def _parse_phrases(text: str) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.sub(r"\n {6}", " ", text.strip()).splitlines():
        if not line.startswith(" "):
            phrases = found[line] = {SENTENCE: [], ENDING: [], BEGINNING: []}
            continue
        kind, _, phrase = line.strip().partition(" ")
        phrases[kind].append(phrase)
    return found


PHRASES = _parse_phrases("""
keywords:existence
  . (Include|Use|Work in) the {keyword} {words}.
  . (Make sure to|Please|Be sure to) (mention|use) {words}(| somewhere).
  . The {keyword} {words} (must|should|has to|needs to) (appear|be in there|come up).
  . (I want|I'd like|I need) {words} to (appear|be mentioned) in the (answer|text).
  . Don't forget to (mention|use) {words}.
  > , (using|including|mentioning) the {keyword} {words}
  > and (use|include) the {keyword} {words}
  < Using the {keyword} {words}
keywords:frequency at least
  . (Use|Mention|Repeat) the word {word} at least {times}.
  . The word {word} (should|must|has to) (appear|come up|occur) at least {times}.
  . (I want to see|I'd like to read) {word} at least {times}.
  . (Please say|Say) {word} {times} or more.
  > , using the word {word} at least {times}
  > and (mention|use) {word} at least {times}
keywords:frequency less than
  . (Use|Mention|Say) {word} no more than {most_times}.
  . (Don't|Do not|Please don't) (use|repeat) the word {word} more than {most_times}.
  . The word {word} (should|must) (appear|come up) fewer than {times}.
  . I (don't want|do not want) to (read|see) {word} more than {most_times}.
  > , (using|mentioning) {word} no more than {most_times}
keywords:forbidden_words
  . (Don't|Do not|Please don't|Never) (use|mention|write) the {keyword} {either}.
  . (Avoid|Leave out|Skip|Stay away from) the {keyword} {words}.
  . (Keep|Leave) the {keyword} {words} out of (it|your answer|the text).
  . The {keyword} {words} must not (appear|come up|be used)(| anywhere).
  . I (don't want to|would rather not) (see|read) {either}.
  > without (using|mentioning) {either}
  > but (avoid|leave out) the {keyword} {words}
  < Without (using|saying|writing) {either}
keywords:letter_frequency at least
  . The letter {letter} (should|must|has to) (appear|occur|show up) at least {n} times.
  . (Use|Work in|Include) the letter {letter} (at least {n} times|{n} times or more).
  . (I want|I need|I'd like) (at least {n} uses|no fewer than {n} uses) of the letter {letter}.
  > , with the letter {letter} (at least {n} times|{n} or more times)
keywords:letter_frequency less than
  . (Use|Write) the letter {letter} (fewer than|less than) {n} times(| in total).
  . The letter {letter} (should|must) (appear|occur) (fewer|less) than {n} times.
  . (Keep|Limit) the letter {letter} to (fewer|less) than {n} uses.
  > , with (fewer|less) than {n} uses of the letter {letter}
language:response_language
  . (Answer|Reply|Respond|Write) in {language} only.
  . (Your|The) (whole|entire|complete) (answer|response|reply) (should|must|has to) be in
      {language}.
  . (Please use|Use) {language} and no other language.
  . I (only read|don't understand anything but) {language}, so (answer|reply|write) in that.
  . (Everything|All of it) (should|must) be (written |)in {language}(, please|).
  > in {language}
  > , (entirely|completely|all of it) in {language}
  < In {language}
length_constraints:number_sentences at least
  . (Use|Write|Give me) at least {n} sentences.
  . (I need|I want|It takes) {n} sentences or more.
  . (Your answer|The answer|The text) (should|must) have (at least {n} sentences|{n} sentences or
      more).
  > in at least {n} sentences
  > , with no fewer than {n} sentences
  < In {n} or more sentences
length_constraints:number_sentences less than
  . (Use|Write) (fewer|less) than {n} sentences.
  . (Keep it|Stay) (under|below) {n} sentences(, please|).
  . (No more than|At most) {most} sentences(, please|).
  . I (have no time|have no patience) for more than {most} sentences.
  > in (fewer|less) than {n} sentences
  > in (no more than|at most) {most} sentences
  < In (no more than|at most) {most} sentences
length_constraints:number_words at least
  . (Write|Use) (at least {n} words|{n} words or more).
  . (Your answer|The answer|The text) (should|must|has to) (be|have) at least {n} words(| long).
  . (I need|I want|I'm after) (no fewer than|at least|a minimum of) {n} words.
  > in (at least {n} words|{n} words or more|no fewer than {n} words)
  > , using at least {n} words
  < In (at least {n} words|{n} words or more)
length_constraints:number_words less than
  . (Keep it|Stay) (under|below) {n} words(, please|).
  . (Use|Write) (fewer|less) than {n} words.
  . (Your answer|The answer|The text) (should|must|has to) (be|stay) (under {n} words|shorter than
      {n} words).
  . I (have little time|am in a hurry), so use (fewer|less) than {n} words.
  > in (fewer than|less than|under) {n} words
  > , using (fewer|less) than {n} words
  < In (fewer than|less than|under) {n} words
length_constraints:number_paragraphs
  . (Write|Give me|Use) (exactly |){n} paragraphs(, separated by|, divided by| and separate them
      with) (the markdown divider |three asterisks: |)***.
  . (Split|Divide|Break) (it|your answer|the text) into (exactly |){n} paragraphs(, with ***
      between them| and put *** between them).
  . (I want|I need) exactly {n} paragraphs. (Separate|Divide) them with ***.
  . (Your answer|The text) (should|must) have {n} paragraphs with *** (between one and the next|as
      the divider).
  > in (exactly |){n} paragraphs (separated|divided) by ***
  < In exactly {n} paragraphs (separated|divided) by ***
length_constraints:nth_paragraph_first_word
  . (Write|Give me|Use) (exactly |){n} paragraphs(, with a blank line between them| separated by
      blank lines|, each set off by an empty line). (Start|Begin|Open) (the {nth} one|paragraph
      {k}|the {nth} paragraph) with (the word |){word}.
  . (Split|Divide) (it|your answer|the text) into {n} paragraphs (separated by blank lines|with a
      blank line in between), (and start|and begin|starting|beginning) (the {nth} one|the {nth})
      with (the word |){word}.
  . (I need|I want|There should be) {n} paragraphs with (empty|blank) lines between them. (The
      {nth} one|Paragraph {k}) (must|should|has to) (start|begin|open) with {word}.
  . The {nth} of your {n} paragraphs (should|must) (begin|start) with {word}. (Put|Leave) (a
      blank|an empty) line between paragraphs.
detectable_content:number_placeholders
  . (Leave|Include|Use|Put in) at least {n} placeholders in square brackets, (like|such as|for
      example) {example}.
  . Mark (what I have to fill in|the blanks for me|missing details) with at least {n}
      (square-bracket |bracketed |)placeholders, (like|such as) {example}.
  . (I want|I need) {n} or more (blanks|placeholders|gaps) to fill in, (written|shown) like this:
      {example}.
  > with at least {n} placeholders (such as|like) {example}
detectable_content:postscript
  . (End|Finish|Close) with a postscript that (starts|begins) with {marker}
  . (Add|Put|Include) a postscript at the (very end|end|bottom), (starting|beginning|opening) with
      {marker}
  . (After|Below) (the main text|your answer|everything else), (add|write) a note that
      (starts|begins) with {marker}
  . (Don't forget|I'd like|I also want) a postscript at the end. It (should|must) (start|begin)
      with {marker}
  > and (add|end with|close with) a postscript (starting|beginning) with {marker}
detectable_format:number_bullet_lists
  . (Use|Give me|Write|I want) exactly {n} bullet points, (each starting with|each marked
      with|each after) (an asterisk|a *).
  . (Format|Present|Lay out) (it|your answer|this) as exactly {n} (markdown |)bullet points(, each
      on its own line|, like "* this one"|).
  . (Your answer|The answer|It) (should|must|has to) (have|contain) exactly {n} (markdown
      bullets|bullets like "* this"|bullet points marked with *).
  . (Exactly|No more and no less than|I want exactly) {n} bullet points in markdown
      (style|format), please.
  > in exactly {n} (markdown |)bullet points
  > , with exactly {n} bullet points (that start|starting) with *
  < (In|Using|With) exactly {n} (markdown |)bullet points
detectable_format:constrained_response
  . (Answer|Reply|Respond) (with one of these|with one of these three|only with one of these|with
      nothing but one of these): {options}.
  . (Choose|Pick|Select) (one|one reply|one answer): {options}.
  . (I only want to hear|Just say|Say nothing but|Your reply must be) {options}.
  . (Your answer|The answer) (must|has to|should) be one of the following: {options}.
detectable_format:number_highlighted_sections
  . (Highlight|Emphasize|Mark) at least {n} (words or phrases|phrases|parts|passages)
      (with|in|using) (markdown|asterisks), (like|as in) *{sample}*.
  . (Put|Set) at least {n} (key phrases|important phrases|key ideas|important points) (between|in)
      asterisks, (like|as in) *{sample}*.
  . (I'd like|I want|I need) {n} or more (parts|phrases|passages) highlighted (with asterisks|in
      markdown), (for example|such as) *{sample}*.
  > with at least {n} (phrases|parts|passages) highlighted like *{sample}*
  > and (highlight|emphasize) at least {n} (phrases|parts) with (asterisks|markdown), like
      *{sample}*
detectable_format:multiple_sections
  . (Divide|Split|Break) (your answer|it|the text) into {n} sections (marked|labeled|called)
      {labels}.
  . (Use|Write|I need|I want) {n} sections(,| that are) (labeled|headed|titled|marked) {labels}.
  . (Your answer|The text) (should|must|has to) have {n} sections. (Mark|Start|Begin) (them|each)
      with {marker} and a number, (as in|like) {first}.
  > in {n} sections (labeled|marked|called) {labels}
  > , (divided|split) into {n} sections marked {labels}
detectable_format:json_format
  . (Give|Return|Write|Format) (me |)(your|the) (whole|entire|complete) (answer|response) (as
      JSON|in JSON|as valid JSON|in JSON format).
  . (Reply|Answer|Respond) (only with|with nothing but|with just) (a JSON object|valid JSON).
  . The (whole|entire) (output|reply|answer) (must|has to|should) be (valid JSON|in JSON format)(,
      because a script will read it|, since I will parse it|).
  > (as|in) (JSON|valid JSON)
  > , as a (single |)JSON object
  < (As JSON|In valid JSON|In JSON format)
detectable_format:title
  . (Add|Include|Give it|Put in) a title (in|inside|wrapped in|between) double angle brackets,
      (like|such as) <<{example}>>.
  . (Start|Begin|Open) with a title (in|between|inside) double angle brackets, (like|as in)
      <<{example}>>.
  . (It needs|Your answer needs|I want|There should be) a title, (written|set|shown) like this:
      <<{example}>>.
  . (Put|Write) the title (in|between|inside) double angle brackets: <<{example}>>.
  > with a title (in|inside|between) double angle brackets, (like|as in) <<{example}>>
combination:two_responses
  . (Give|Offer|Write|Show) (me |)two different (answers|versions|responses), separated by (six
      asterisks: |)******.
  . (I'd like|I want|I need) two different (answers|versions|responses) with six asterisks (and
      nothing else |)between them: ******.
  . (Write|Give) two (different|distinct) (versions|answers) and put ****** between (them|the
      two).
combination:repeat_prompt
  . (Before you answer|First|Before anything else), (repeat|copy) (the request above|my request
      above|everything above) word for word(, then answer it|, and then answer it|. After that
      comes your answer).
  . (Start|Begin) (your reply |your answer |)by (repeating|copying) (the request above|everything
      above|my request above) word for word(, then answer it|, and then give your answer|. Then
      answer it).
startend:end_checker
  . (End|Finish|Close) (your answer |it |)with (exactly these words|this sentence|these words|this
      line): "{phrase}"(| Nothing may follow it.| Write nothing after that.)
  . (The|Your) (last|final) (words|sentence|line) (must|should|has to) be(:|) "{phrase}"
  . (I want it|It should|Make it) (to end|end) with "{phrase}" and nothing (after it|else|more).
  > and (end|finish|close) (it |)with the (words|sentence|line) "{phrase}"
startend:quotation
  . (Wrap|Put|Enclose) (your|the) (whole|entire|complete) (answer|response|reply) in double
      quotation marks.
  . (Start|Begin) and end (your answer|the response|your reply|the text) with a double quotation
      mark.
  . (Your|The) (whole|entire|complete) (answer|reply|text) (must|should|has to) (sit|stand|be)
      (inside|between|in) double quotes.
  . (Use double quotation marks|Put double quotes) around (everything you write|the whole
      answer|the entire reply).
  > , all of it (in|inside) double (quotation marks|quotes)
change_case:capital_word_frequency at least
  . (Write|Put) at least {n} words in (all capitals|all caps|capital letters).
  . (Use|I want) all capital letters for (at least {n} words|{n} or more words).
  . At least {n} words (should|must) be in (ALL CAPS|all capitals|capital letters).
  > with at least {n} words in (ALL CAPS|all capitals|capital letters)
change_case:capital_word_frequency less than
  . (Write|Put) (fewer|less) than {n} words in (all capitals|all caps|capital letters).
  . (No more than|At most) {most} words may be in (all capitals|ALL CAPS|capital letters).
  > with (fewer|less) than {n} words in (all capitals|ALL CAPS|capital letters)
change_case:english_capital
  . (Write|Answer|Reply) in English and (use capital letters only|in capital letters only|in all
      capital letters).
  . (Your|The) (whole|entire|complete) (answer|response|reply|text) (should|must|has to) be in
      English and in all (capital letters|caps).
  . (Use|I want) (only capital letters|nothing but capital letters|all caps), and (only
      English|only write English).
  . (ALL CAPS, PLEASE, AND IN ENGLISH|PLEASE ANSWER IN CAPITAL LETTERS, IN ENGLISH|WRITE
      EVERYTHING IN CAPITAL LETTERS, IN ENGLISH).
  > (in all capital letters|in all caps|in capital letters only)
  < (In all capital letters|In capital letters only)
change_case:english_lowercase
  . (Write|Answer|Reply) in English and (use small letters only|in lowercase only|without any
      capital letters).
  . (Your|The) (whole|entire|complete) (answer|response|reply|text) (should|must|has to) be in
      English and (in lowercase|in all lowercase letters).
  . (Don't use|Use no|I don't want any) capital letters(| at all), and (write|answer|stay) in
      English.
  . (all lowercase and in english, please|please answer in english without capital letters|no
      capital letters, and only english).
  > (in all lowercase letters|in lowercase only|without any capital letters)
  < (In all lowercase letters|Without any capital letters|In lowercase only)
punctuation:no_comma
  . (Don't|Do not|Please don't|Never) use (any commas|a single comma|commas)(| anywhere| in your
      answer| in your reply).
  . (Avoid|Leave out|Do without|Skip) (all |)commas(| completely| altogether| entirely).
  . (Your answer|The text|The answer) (must|should) (have no|contain no|be free of) commas.
  . (No commas|Not one comma)(| anywhere| at all)(, please|).
  > without (using |)(any commas|a single comma|commas)
  < Without (using |)(any commas|a single comma|commas)
""")


def split_words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CARDINALS = dict(enumerate(split_words("no one two three four five six seven eight nine ten")))
TIMES = {1: "once", 2: "twice"}
ORDINALS = dict(enumerate(split_words("first second third fourth fifth sixth seventh eighth"), 1))
COMMON_LETTERS, RARE_LETTERS = "aeinorst", "bcdfghmpuvwy"
# Languages that langdetect recognises for certain in a sentence or two.
LANGUAGES = {
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pl": "Polish",
    "ru": "Russian",
}
FIRST_WORDS = split_words("""
however today sometimes finally imagine meanwhile perhaps remember later nobody although still
tomorrow usually suddenly clearly somewhere often yesterday""")
MARKERS = ("Section", "SECTION", "Part", "PART", "Day", "Chapter")
BLANKS = split_words(
    "[name] [date] [place] [address] [time] [price] [company] [email] [city] [title]"
)
TITLES = ("my title", "your title here", "a short title", "the title", "some title", "a good title")
SAMPLES = ("like this", "this", "important", "this part", "highlighted", "so")
END_PHRASES = (
    "That is all I know.",
    "I hope this helps.",
    "And that was that.",
    "Now it is your turn.",
    "Let me know what you think.",
    "What would you do?",
    "Try it yourself.",
    "The rest is up to you.",
    "Good luck with it!",
    "Have a wonderful day!",
    "There is always a next time.",
    "Isn't that something?",
    "Thank you for reading.",
    "Tell me if you need more.",
    "Does that make sense?",
    "It is as simple as that.",
)
AGREE = ("", "", " if you agree", " if so", " if it is", " if that is right", " for a clear yes")
DISAGREE = ("", "", " if you disagree", " if not", " if it is not", " otherwise", " for a clear no")
UNSURE = ("", "", " if you are unsure", " if it depends", " if nobody can know", " when in doubt")


def choose_wording(rng: random.Random, phrase: str) -> str:
    """Chooses one of each `(one|other)`."""
    while match := re.search(r"\(([^()]*\|[^()]*)\)", phrase):
        choice = rng.choice(match[1].split("|"))
        phrase = phrase[: match.start()] + choice + phrase[match.end() :]
    return phrase


def draw_constraint(
    rng: random.Random, family: str, words: list[str], max_words: int
) -> Constraint:
    """What a family asks for; takes the words that it needs out of `words`."""
    key, arguments, shown = _draw_arguments(rng, family, words, max_words)
    return Constraint(family, arguments, PHRASES[f"{family} {key}".strip()], shown)


def _draw_arguments(
    rng: random.Random, family: str, words: list[str], max_words: int
) -> tuple[str, dict[str, Any], dict[str, str]]:
    match family.partition(":")[0]:
        case "keywords":
            return _draw_keywords(rng, family, words, max_words)
        case "length_constraints":
            return _draw_length(rng, family, max_words)
        case "detectable_format" | "detectable_content":
            return "", *_draw_format(rng, family, max_words)
    return _draw_other(rng, family, max_words)


def _draw_keywords(
    rng: random.Random, family: str, words: list[str], max_words: int
) -> tuple[str, dict[str, Any], dict[str, str]]:
    if family in (families.EXISTENCE, families.FORBIDDEN):
        key = "keywords" if family == families.EXISTENCE else "forbidden_words"
        # Two words stay for other families.
        count = max(1, min(rng.choice((1, 1, 2, 2, 3)), len(words) - 2))
        chosen = [words.pop() for _ in range(count)]
        return "", {key: chosen}, _show_words(rng, chosen)
    relation = _draw_relation(rng)
    if family == families.FREQUENCY:
        word, count = words.pop(), rng.randint(2, 4)
        shown = {"word": _quote(rng, [word])[0], **_show_number(rng, count)}
        return relation, {"keyword": word, "frequency": count, "relation": relation}, shown
    letter = rng.choice(COMMON_LETTERS if rng.random() < 0.5 else RARE_LETTERS)
    few, many = (3, 6) if letter in RARE_LETTERS else (6, max_words // 6)
    count = rng.randint(few, max(many, few + 3))
    arguments = {"letter": letter, "let_frequency": count, "let_relation": relation}
    return relation, arguments, {"letter": _quote(rng, [letter])[0], **_show_number(rng, count)}


def _draw_length(
    rng: random.Random, family: str, max_words: int
) -> tuple[str, dict[str, Any], dict[str, str]]:
    relation = _draw_relation(rng)
    is_lower = relation == AT_LEAST
    if family == families.WORDS:
        count = rng.randrange(20 if is_lower else 30, max_words + 1, 5 if max_words <= 120 else 10)
        return relation, {"num_words": count, "relation": relation}, {"n": str(count)}
    if family == families.SENTENCES:
        count = rng.randint(2 if is_lower else 3, max(3, max_words // 15))
        shown = _show_number(rng, count)
        return relation, {"num_sentences": count, "relation": relation}, shown
    count = rng.randint(2, _limit_parts(max_words, 25))
    if family == families.PARAGRAPHS:
        return "", {"num_paragraphs": count}, _show_number(rng, count)
    nth, word = rng.randint(1, count), rng.choice(FIRST_WORDS)
    arguments = {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word}
    shown = {"word": _quote(rng, [word])[0], "nth": ORDINALS[nth], "k": str(nth)}
    return "", arguments, {**_show_number(rng, count), **shown}


def _draw_format(
    rng: random.Random, family: str, max_words: int
) -> tuple[dict[str, Any], dict[str, str]]:
    match family:
        case families.PLACEHOLDERS:
            count = rng.randint(2, 4)
            shown = {**_show_number(rng, count), "example": rng.choice(BLANKS)}
            return {"num_placeholders": count}, shown
        case families.POSTSCRIPT:
            marker = rng.choice(("P.S.", "P.S.", "P.P.S"))
            return {"postscript_marker": marker}, {"marker": marker.removesuffix(".") + "."}
        case families.BULLETS:
            count = rng.randint(2, _limit_parts(max_words, 15))
            return {"num_bullets": count}, _show_number(rng, count)
        case families.HIGHLIGHTS:
            count = rng.randint(2, 4)
            return {"num_highlights": count}, {
                **_show_number(rng, count),
                "sample": rng.choice(SAMPLES),
            }
        case families.SECTIONS:
            count, marker = rng.randint(2, _limit_parts(max_words, 25)), rng.choice(MARKERS)
            arguments = {"section_spliter": marker, "num_sections": count}
            return arguments, {**_show_number(rng, count), **_show_sections(marker, count)}
        case families.OPTIONS:
            return {}, {"options": _show_options(rng)}
    return {}, {"example": rng.choice(TITLES)}


def _draw_other(
    rng: random.Random, family: str, max_words: int
) -> tuple[str, dict[str, Any], dict[str, str]]:
    if family == families.LANGUAGE:
        code = rng.choice(list(LANGUAGES))
        return "", {"language": code}, {"language": LANGUAGES[code]}
    if family == families.ENDING:
        phrase = rng.choice(END_PHRASES)
        return "", {"end_phrase": phrase}, {"phrase": phrase}
    if family == families.CAPITAL_WORDS:
        relation = _draw_relation(rng)
        count = rng.randint(3, max(4, max_words // 10))
        arguments = {"capital_frequency": count, "capital_relation": relation}
        return relation, arguments, _show_number(rng, count)
    return "", {}, {}  # the prompt that combination:repeat_prompt repeats is not written yet


def _limit_parts(max_words: int, each: int) -> int:
    """The most parts of `each` words, and never more than eight."""
    return min(len(ORDINALS), max(2, max_words // each))


def _draw_relation(rng: random.Random) -> str:
    return AT_LEAST if rng.random() < 0.6 else LESS_THAN


# ── values as phrases show them ──────────────────────────────────────────────────────────────────


def _show_number(rng: random.Random, count: int) -> dict[str, str]:
    is_spelled = count in CARDINALS and rng.random() < 0.6
    spelled = CARDINALS if is_spelled else {}
    below = count - 1
    return {
        "n": spelled.get(count, str(count)),
        "times": _show_times(count, spelled),
        "most": spelled.get(below, str(below)),
        "most_times": _show_times(below, spelled),
    }


def _show_times(count: int, spelled: dict[int, str]) -> str:
    return TIMES.get(count) or f"{spelled.get(count, str(count))} times"


def _show_words(rng: random.Random, words: Sequence[str]) -> dict[str, str]:
    quoted = _quote(rng, words)
    noun = rng.choice(("word", "word", "keyword", "term"))
    return {
        "words": _join(quoted, "and"),
        "either": _join(quoted, "or"),
        "keyword": noun if len(words) == 1 else f"{noun}s",
    }


def _quote(rng: random.Random, words: Sequence[str]) -> list[str]:
    """All in the same quotation marks: double ones, single ones or asterisks are what people type.

    A word alone without marks would read as part of the sentence.
    """
    mark = rng.choice(('"', '"', "'"))
    return [f"{mark}{word}{mark}" for word in words]


def _join(words: Sequence[str], conjunction: str) -> str:
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def _show_sections(marker: str, count: int) -> dict[str, str]:
    labels = [f"{marker} {number}" for number in range(1, count + 1)]
    shown = _join(labels, "and") if count < 4 else f"{labels[0]} to {labels[-1]}"
    return {"marker": marker, "first": labels[0], "labels": shown}


def _show_options(rng: random.Random) -> str:
    """The three answers that IFEval's checker accepts, in any order."""
    options = [
        f'"My answer is {answer}."{rng.choice(when)}'
        for answer, when in (("yes", AGREE), ("no", DISAGREE), ("maybe", UNSURE))
    ]
    rng.shuffle(options)
    return _join(options, "or")
