"""The playground: instructions with checkable constraints, and noisy answers to them, as many as one likes.

The same seed gives the same rows on every machine, and the first rows of a long list are those of a short one.
What it shows: that every stage works, and what preference training does to a model. What it cannot show: language.
"""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from pipeline.config import PlaygroundDemonstrations, PlaygroundPreferences
from pipeline.data.synthetic_topics import TOPICS, Topic
from pipeline.errors import UserError

Constraint = dict[str, Any]
Row = dict[str, Any]

OPENERS = ("Listen", "Look", "Imagine", "Well", "Today", "Yes")
CLOSERS = ("Now you know.", "So they say.", "Ask me again.", "Tell your friends.", "Think of that.")
FORBIDDEN = ("and", "it", "is", "often")
COUNTS = {2: "two", 3: "three", 4: "four"}

LEADS = (
    "Tell me about the {topic}.",
    "Write a short text about the {topic}.",
    "Describe the {topic} to a child.",
    "What should I know about the {topic}?",
    "I would like to read about the {topic}.",
    "Say something true about the {topic}.",
)
# Words stand in an instruction as they would in an answer, without quotes: what looks alike is easy to learn to copy.
PHRASES = {
    "sentences": (
        "Use exactly {count} sentences.",
        "Write {count} sentences.",
        "Make it {count} sentences long.",
    ),
    "mention": (
        "Mention the word {word}.",
        "The word {word} has to appear.",
        "Include the word {word}.",
    ),
    "open": ("Open with the word {word}.", "Let {word} be the first word.", "Begin with {word}."),
    "close": (
        "End with: {sentence}",
        "Let the last sentence be: {sentence}",
        "Finish by saying: {sentence}",
    ),
    "avoid": (
        "Never use the word {word}.",
        "Do without the word {word}.",
        "Avoid the word {word}.",
    ),
    "lower": (
        "Use no capital letters.",
        "Write everything in lower case.",
        "Keep every letter small.",
    ),
}
FRAMES = (
    "the {topic} {deed}.",
    "the {topic} is {trait} and {other}.",
    "the {topic} stays {trait} and {deed}.",
    "in its dreams the {topic} {deed}.",
    "once a year it {deed}.",
    "it often {deed}.",
    "it is {trait}, and it {deed}.",
    "few things are so {trait}.",
    "nobody forgets the {thing}.",
    "old stories speak of the {thing}.",
    "children often ask about the {thing}.",
    "without the {thing} it would be lost.",
    "all of it begins with the {thing}.",
    "the {thing} is never far away.",
    "seek the {thing} and you find the {topic}.",
)
MOST_REPEATS = 1000  # so many known prompts in a row: there are hardly any new ones left


def prompts(rows: int, constraints: int, seed: int) -> Iterator[Row]:
    """`rows` distinct prompts with `constraints` kinds of constraint each, and the columns that the rule reads."""
    rng = random.Random(f"playground prompts {seed}")
    known: set[str] = set()
    repeats = 0
    while len(known) < rows:
        topic, chosen, text = _instruction(rng, constraints)
        repeats = repeats + 1 if text in known else 0
        if repeats > MOST_REPEATS:
            raise UserError(
                f"prompts.rows={rows}: the playground has only about {len(known)} distinct prompts with "
                f"prompts.constraints={constraints}.\n  Lower prompts.rows, or raise prompts.constraints."
            )
        if not repeats:
            known.add(text)
            yield {
                "prompt": [{"role": "user", "content": text}],
                "columns": _columns(topic, chosen),
            }


def demonstrations(cfg: PlaygroundDemonstrations) -> Iterator[Row]:
    """Conversations whose answer obeys each constraint with probability `obeyed`."""
    rng = random.Random(f"playground demonstrations {cfg.seed}")
    for _ in range(cfg.rows):
        topic, chosen, text = _instruction(rng, cfg.constraints)
        obeyed = [rng.random() < cfg.obeyed for _ in chosen]
        reply = answer(rng, topic, chosen, obeyed)
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
        yield {"messages": messages, "columns": _columns(topic, chosen)}


def preferences(cfg: PlaygroundPreferences) -> Iterator[Row]:
    """Two answers to each instruction, the one that obeys more of it chosen; `flipped` tells whether wrongly.

    Flips are drawn beside the texts: the same rows with more wrong labels have every wrong label of those with fewer.
    """
    rng, flips = (
        random.Random(f"playground {what} {cfg.seed}") for what in ("preferences", "flips")
    )
    for _ in range(cfg.rows):
        topic, chosen, text = _instruction(rng, cfg.constraints)
        sides = [[rng.random() < cfg.obeyed for _ in chosen] for _ in range(2)]
        while sum(sides[0]) == sum(sides[1]):
            sides = [[rng.random() < cfg.obeyed for _ in chosen] for _ in range(2)]
        better, worse = (
            (answer(rng, topic, chosen, side), sum(side))
            for side in sorted(sides, key=sum, reverse=True)
        )
        flipped = flips.random() < cfg.flipped
        first, second = (worse, better) if flipped else (better, worse)
        yield {
            "prompt": [{"role": "user", "content": text}],
            "columns": _columns(topic, chosen),
            "chosen": first[0],
            "rejected": second[0],
            "chosen_score": first[1] / len(chosen),
            "rejected_score": second[1] / len(chosen),
            "flipped": flipped,
        }


def answer(
    rng: random.Random, topic: Topic, constraints: list[Constraint], obeyed: list[bool]
) -> str:
    """A little text about the topic that obeys and violates exactly what it is told to."""
    wish = {
        constraint["kind"]: (constraint, obey)
        for constraint, obey in zip(constraints, obeyed, strict=True)
    }
    opener = _choose(rng, OPENERS, wish.get("open"), "word", spare=(None,) * 6)
    closer = _choose(rng, CLOSERS, wish.get("close"), "sentence", spare=(None,) * 5)
    count = _choose(rng, tuple(COUNTS), wish.get("sentences"), "count", spare=())
    present = [
        c["word"]
        for kind, (c, obey) in wish.items()
        if (kind, obey) in (("mention", True), ("avoid", False))
    ]
    absent = [
        c["word"]
        for kind, (c, obey) in wish.items()
        if (kind, obey) in (("mention", False), ("avoid", True))
    ]

    body = _body(rng, topic, count - bool(closer), present, absent)
    if opener:
        body[0] = f"{opener}, {body[0]}"
    text = " ".join([_capital(sentence) for sentence in body] + [closer] * bool(closer))
    return text.lower() if "lower" in wish and wish["lower"][1] else text


def _instruction(rng: random.Random, constraints: int) -> tuple[Topic, list[Constraint], str]:
    if not 1 <= constraints <= len(PHRASES):
        known = ", ".join(PHRASES)
        raise UserError(
            f"prompts.constraints={constraints}: a playground prompt has 1 to {len(PHRASES)} of them ({known})."
        )
    topic = rng.choice(TOPICS)
    chosen = [_constraint(rng, kind, topic) for kind in rng.sample(list(PHRASES), constraints)]
    lead = rng.choice(LEADS).format(topic=topic.name)
    return topic, chosen, " ".join([lead, *(_phrase(rng, constraint) for constraint in chosen)])


def _columns(topic: Topic, constraints: list[Constraint]) -> Row:
    return {"category": topic.category, "topic": topic.name, "constraints": constraints}


def _constraint(rng: random.Random, kind: str, topic: Topic) -> Constraint:
    match kind:
        case "sentences":
            return {"kind": kind, "count": rng.choice(list(COUNTS))}
        case "mention":
            return {"kind": kind, "word": rng.choice(topic.things)}
        case "open":
            return {"kind": kind, "word": rng.choice(OPENERS)}
        case "close":
            return {"kind": kind, "sentence": rng.choice(CLOSERS)}
        case "avoid":
            return {"kind": kind, "word": rng.choice(FORBIDDEN)}
        case _:
            return {"kind": kind}


def _phrase(rng: random.Random, constraint: Constraint) -> str:
    shown = constraint | {"count": COUNTS.get(constraint.get("count", 0))}
    return rng.choice(PHRASES[constraint["kind"]]).format(**shown)


def _choose(
    rng: random.Random, values: tuple, wish: tuple[Constraint, bool] | None, key: str, spare: tuple
) -> Any:
    """The value asked for when it is to be obeyed, else any other one, or one of the spare ones."""
    if wish and wish[1]:
        return wish[0][key]
    return rng.choice([value for value in (*values, *spare) if not wish or value != wish[0][key]])


def _body(
    rng: random.Random, topic: Topic, count: int, present: list[str], absent: list[str]
) -> list[str]:
    for _ in itertools.count():
        body = [_sentence(rng, frame, topic) for frame in rng.sample(FRAMES, count)]
        words = {
            word for sentence in body for word in sentence.replace(",", "").rstrip(".").split()
        }
        if words.issuperset(present) and words.isdisjoint(absent):
            return body
    raise AssertionError("unreachable: the loop has no end of its own")


def _sentence(rng: random.Random, frame: str, topic: Topic) -> str:
    trait, other = rng.sample(topic.traits, 2)
    return frame.format(
        topic=topic.name,
        trait=trait,
        other=other,
        thing=rng.choice(topic.things),
        deed=rng.choice(topic.deeds),
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
