"""The playground: any number of instructions with checkable constraints, and noisy answers.

The same seed gives the same rows on every machine, and the first rows of a long list are those of a
short one. It shows that every stage works, and what preference training does to a model. It cannot
show language.
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
# Words appear in an instruction as in an answer, without quotes: a small model copies equal tokens
# easily.
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
MAX_REPEATS = 1000  # known prompts in a row: few new ones are left


def generate_prompts(rows: int, constraints: int, seed: int) -> Iterator[Row]:
    """`rows` distinct prompts with `constraints` kinds of constraint each.

    `columns`: what the rule scorer reads.
    """
    rng = random.Random(f"playground prompts {seed}")
    known: set[str] = set()
    repeats = 0
    while len(known) < rows:
        topic, chosen, text = _make_instruction(rng, constraints)
        repeats = repeats + 1 if text in known else 0
        if repeats > MAX_REPEATS:
            raise UserError(
                f"prompts.rows={rows}: the playground has only about {len(known)} distinct prompts"
                f" with prompts.constraints={constraints}.\n"
                "  Lower prompts.rows, or raise prompts.constraints."
            )
        if not repeats:
            known.add(text)
            yield {
                "prompt": [{"role": "user", "content": text}],
                "columns": _make_columns(topic, chosen),
            }


def generate_demonstrations(cfg: PlaygroundDemonstrations) -> Iterator[Row]:
    """Conversations whose answer obeys each constraint with probability `obeyed`."""
    rng = random.Random(f"playground demonstrations {cfg.seed}")
    for _ in range(cfg.rows):
        topic, chosen, text = _make_instruction(rng, cfg.constraints)
        obeyed = [rng.random() < cfg.obeyed for _ in chosen]
        reply = write_answer(rng, topic, chosen, obeyed)
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
        yield {"messages": messages, "columns": _make_columns(topic, chosen)}


def generate_preferences(cfg: PlaygroundPreferences) -> Iterator[Row]:
    """Two answers to each instruction. The one that obeys more is chosen, unless `flipped`.

    Flips have their own random numbers: the same rows with more wrong labels keep every wrong label
    of the rows with fewer.
    """
    rng, flips = (
        random.Random(f"playground {what} {cfg.seed}") for what in ("preferences", "flips")
    )
    for _ in range(cfg.rows):
        topic, chosen, text = _make_instruction(rng, cfg.constraints)
        sides = [[rng.random() < cfg.obeyed for _ in chosen] for _ in range(2)]
        while sum(sides[0]) == sum(sides[1]):
            sides = [[rng.random() < cfg.obeyed for _ in chosen] for _ in range(2)]
        better, worse = (
            (write_answer(rng, topic, chosen, side), sum(side))
            for side in sorted(sides, key=sum, reverse=True)
        )
        flipped = flips.random() < cfg.flipped
        first, second = (worse, better) if flipped else (better, worse)
        yield {
            "prompt": [{"role": "user", "content": text}],
            "columns": _make_columns(topic, chosen),
            "chosen": first[0],
            "rejected": second[0],
            "chosen_score": first[1] / len(chosen),
            "rejected_score": second[1] / len(chosen),
            "flipped": flipped,
        }


def write_answer(
    rng: random.Random, topic: Topic, constraints: list[Constraint], obeyed: list[bool]
) -> str:
    """A short text about the topic that obeys exactly the constraints that `obeyed` names."""
    wish = {
        constraint["kind"]: (constraint, obey)
        for constraint, obey in zip(constraints, obeyed, strict=True)
    }
    opener = _choose_value(rng, OPENERS, wish.get("open"), "word", spare=(None,) * 6)
    closer = _choose_value(rng, CLOSERS, wish.get("close"), "sentence", spare=(None,) * 5)
    count = _choose_value(rng, tuple(COUNTS), wish.get("sentences"), "count", spare=())
    present: list[str] = []
    absent: list[str] = []
    for kind, (constraint, obey) in wish.items():
        if kind in ("mention", "avoid"):
            words = present if obey == (kind == "mention") else absent
            words.append(constraint["word"])

    body = _write_sentences(rng, topic, count - bool(closer), present, absent)
    if opener:
        body[0] = f"{opener}, {body[0]}"
    text = " ".join([_capitalize(sentence) for sentence in body] + [closer] * bool(closer))
    return text.lower() if "lower" in wish and wish["lower"][1] else text


def _make_instruction(rng: random.Random, constraints: int) -> tuple[Topic, list[Constraint], str]:
    if not 1 <= constraints <= len(PHRASES):
        known = ", ".join(PHRASES)
        raise UserError(
            f"prompts.constraints={constraints}: a playground prompt has 1 to {len(PHRASES)} of"
            f" them ({known})."
        )
    topic = rng.choice(TOPICS)
    chosen = [_draw_constraint(rng, kind, topic) for kind in rng.sample(list(PHRASES), constraints)]
    lead = rng.choice(LEADS).format(topic=topic.name)
    phrases = [_phrase_constraint(rng, constraint) for constraint in chosen]
    return topic, chosen, " ".join([lead, *phrases])


def _make_columns(topic: Topic, constraints: list[Constraint]) -> Row:
    return {"category": topic.category, "topic": topic.name, "constraints": constraints}


def _draw_constraint(rng: random.Random, kind: str, topic: Topic) -> Constraint:
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


def _phrase_constraint(rng: random.Random, constraint: Constraint) -> str:
    shown = constraint | {"count": COUNTS.get(constraint.get("count", 0))}
    return rng.choice(PHRASES[constraint["kind"]]).format(**shown)


def _choose_value(
    rng: random.Random, values: tuple, wish: tuple[Constraint, bool] | None, key: str, spare: tuple
) -> Any:
    """The constraint's value where it is to be obeyed; else another one, or one of `spare`."""
    if wish and wish[1]:
        return wish[0][key]
    return rng.choice([value for value in (*values, *spare) if not wish or value != wish[0][key]])


def _write_sentences(
    rng: random.Random, topic: Topic, count: int, present: list[str], absent: list[str]
) -> list[str]:
    for _ in itertools.count():
        body = [_write_sentence(rng, frame, topic) for frame in rng.sample(FRAMES, count)]
        words = {
            word for sentence in body for word in sentence.replace(",", "").rstrip(".").split()
        }
        if words.issuperset(present) and words.isdisjoint(absent):
            return body
    raise AssertionError("unreachable: the loop never ends by itself")


def _write_sentence(rng: random.Random, frame: str, topic: Topic) -> str:
    trait, other = rng.sample(topic.traits, 2)
    return frame.format(
        topic=topic.name,
        trait=trait,
        other=other,
        thing=rng.choice(topic.things),
        deed=rng.choice(topic.deeds),
    )


def _capitalize(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
