"""Natural instructions that carry IFEval's verifiable constraints, for training and for evaluation.

The same seed gives the same rows on every machine. The rows come from two lists, one for training
and one with held-out families for dev and test; of each list the first rows of a long one are those
of a short one.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import ConstraintFamily, InstructionPrompts
from pipeline.data import instruction_conflicts as families
from pipeline.data.instruction_conflicts import find_contradiction, go_together
from pipeline.data.instruction_phrases import (
    BEGINNING,
    ENDING,
    SENTENCE,
    Constraint,
    choose_wording,
    draw_constraint,
)
from pipeline.data.instruction_tasks import FRAMES, LONG_SUBJECTS, Task, make_task
from pipeline.errors import UserError

Row = dict[str, Any]

TRAINED, HELD_OUT, MIXED = "trained", "held_out", "mixed"  # values of the column `families`

# Kinds of task for which a family would be odd. All others take it.
ODD: Mapping[str, set[str]] = {
    families.JSON: {"story", "poem", "dialogue", "letter", "passage"},
    families.REPEAT: {"passage"},
    families.TITLE: {"letter", "question", "dialogue"},
    families.PLACEHOLDERS: set(FRAMES) - {"letter", "plan", "job", "product", "review", "passage"},
    families.POSTSCRIPT: {"list", "dialogue", "poem"},
    families.BULLETS: {"poem", "story", "dialogue", "letter"},
    families.SECTIONS: {"poem", "dialogue", "letter", "question"},
    families.QUOTED: {"dialogue"},
}
VERDICT = "verdict"  # the kind of task that the family with fixed answers has to itself
CONTEXTS = (
    "I'm preparing a talk for my local club.",
    "This is for a class that I teach.",
    "I'm new here and have a request.",
    "I need this for tomorrow morning.",
    "You are helping me with a small project.",
    "My editor is waiting for a text.",
    "I promised to write something for a newsletter.",
    "This is going on a poster in our hallway.",
    "We are a team of volunteers and need some help.",
    "I'm stuck on the train and bored.",
    "My grandmother will read this.",
    "I'd like your help with something.",
    "I'm testing how well you follow instructions.",
    "It's for my website.",
    "I'm writing a school paper.",
    "Here is what I need.",
)
HEADINGS = ("Rules:", "Please note:", "Requirements:", "What matters to me:", "Conditions:", "")
# Sentences that point back at the request do not precede it.
POINTS_BACK = {"it", "it,", "above", "text", "answer", "them", "them."}
MIN_KEYWORDS = 3  # of a task: three families may take one each
MAX_REPEATS = 1000  # attempts in a row without a new prompt: few new ones are left


def generate_prompts(cfg: InstructionPrompts, rows: int | None = None) -> Iterator[Row]:
    """`rows` distinct prompts (all of them by default), those with held-out families first.

    `columns`: IFEval's `instruction_id_list` and `kwargs`, and for slices the kind of task, its
    topic, and whether its families are trained, held out or both (mixed).
    """
    rows = cfg.rows if rows is None else rows
    held_out = min(cfg.held_out_rows, rows)
    yield from _generate_distinct(cfg, held_out, HELD_OUT, cfg.held_out)
    yield from _generate_distinct(cfg, rows - held_out, TRAINED, cfg.trained_families)


def _generate_distinct(
    cfg: InstructionPrompts, rows: int, name: str, first: Sequence[ConstraintFamily]
) -> Iterator[Row]:
    """Prompts whose first family is one of `first`. Those of training have no held-out family."""
    rng = random.Random(f"instructions {name} {cfg.seed}")
    pool = cfg.trained_families if name == TRAINED else [*cfg.trained_families, *cfg.held_out]
    known: set[str] = set()
    repeats = 0
    while len(known) < rows:
        row = _make_row(rng, cfg, first, pool)
        text = row["prompt"][0]["content"] if row else None
        repeats = repeats + 1 if text is None or text in known else 0
        if repeats > MAX_REPEATS:
            raise UserError(
                f"prompts.rows={cfg.rows}: only about {len(known)} of {rows} prompts with {name}"
                " families can be generated with these knobs.\n"
                "  Lower prompts.rows, or allow more families (prompts.excluded, prompts.held_out)"
                f" or fewer constraints together (prompts.constraints={cfg.constraints})."
            )
        if row and not repeats:
            known.add(row["prompt"][0]["content"])
            yield row


def _make_row(
    rng: random.Random,
    cfg: InstructionPrompts,
    first: Sequence[ConstraintFamily],
    pool: Sequence[ConstraintFamily],
) -> Row | None:
    """A prompt, or None where the families drawn do not fit together."""
    [count] = rng.choices(range(1, len(cfg.constraints) + 1), cfg.constraints)
    chosen = _draw_families(rng, count, first, pool)
    if len(chosen) < count:
        return None
    task = make_task(rng, rng.choice(_list_kinds(chosen)))
    words = [word for word in task.words if word not in task.request.lower()]
    rng.shuffle(words)
    if len(words) < MIN_KEYWORDS and any(name.startswith("keywords:") for name in chosen):
        return None
    constraints = [draw_constraint(rng, name, words, cfg.max_words) for name in chosen]
    if not _fit_together(constraints):
        return None
    text, constraints = _write_prompt(rng, task, constraints)
    names = [constraint.family for constraint in constraints]
    arguments = [constraint.arguments for constraint in constraints]
    if find_contradiction(names, arguments):
        return None
    columns = {
        "instruction_id_list": names,
        "kwargs": arguments,
        "task": task.kind,
        "topic": task.topic,
        "families": _describe_families(names, cfg.held_out),
    }
    return {"prompt": [{"role": "user", "content": text}], "columns": columns}


def _draw_families(
    rng: random.Random, count: int, first: Sequence[str], pool: Sequence[str]
) -> list[str]:
    """Families that go together, and for which there is a kind of task; perhaps fewer."""
    chosen = [rng.choice(first)]
    for name in rng.sample(pool, len(pool)):
        if len(chosen) == count:
            break
        if all(go_together(name, other) for other in chosen) and _list_kinds([*chosen, name]):
            chosen.append(name)
    return chosen


def _list_kinds(chosen: Sequence[str]) -> list[str]:
    if families.OPTIONS in chosen:
        return [VERDICT]
    odd = {VERDICT}.union(*(ODD.get(name, set()) for name in chosen))
    return [kind for kind in FRAMES if kind not in odd]


def _describe_families(names: Sequence[str], held_out: Sequence[str]) -> str:
    unseen = [name in held_out for name in names]
    if all(unseen):
        return HELD_OUT
    return MIXED if any(unseen) else TRAINED


# ── numbers that one answer can meet ─────────────────────────────────────────────────────────────

# Words that a part of an answer has at least, so that the whole reads like one.
PART_WORDS = {
    families.SENTENCES: 8,
    families.BULLETS: 5,
    families.PARAGRAPHS: 12,
    families.FIRST_WORD: 12,
    families.SECTIONS: 10,
    families.PLACEHOLDERS: 8,
    families.HIGHLIGHTS: 8,
    families.FREQUENCY: 10,
}
SENTENCE_WORDS = 20  # and at most, where both numbers are limited


# Families whose answers have letters that the prompt fixes.
FIXED_LETTERS = {
    families.EXISTENCE,
    families.FREQUENCY,
    families.ENDING,
    families.FIRST_WORD,
    families.POSTSCRIPT,
    families.SECTIONS,
}


def _fit_together(constraints: Sequence[Constraint]) -> bool:
    named = {each.family: each.arguments for each in constraints}
    few_letters = named.get(families.LETTERS, {}).get("let_relation") == families.LESS_THAN
    if few_letters and FIXED_LETTERS.intersection(named):
        return False
    limits = [_find_limit(constraint) for constraint in constraints]
    longest = min((limit for limit, _ in limits if limit), default=None)
    shortest = max((needed for _, needed in limits if needed), default=0)
    return longest is None or shortest <= longest


def _find_limit(constraint: Constraint) -> tuple[int | None, int | None]:
    """The most and the fewest words of an answer that meets this constraint."""
    family, arguments = constraint.family, constraint.arguments
    number = next((value for value in arguments.values() if isinstance(value, int)), 0)
    is_upper = families.LESS_THAN in arguments.values()
    if family == families.WORDS:
        return (number, None) if is_upper else (None, number)
    if family == families.SENTENCES and is_upper:
        return (number - 1) * SENTENCE_WORDS, None
    if family in PART_WORDS and not is_upper:
        return None, number * PART_WORDS[family]
    return None, None


# ── the text ─────────────────────────────────────────────────────────────────────────────────────


def _write_prompt(
    rng: random.Random, task: Task, constraints: Sequence[Constraint]
) -> tuple[str, list[Constraint]]:
    """The task with its constraints before, within or after it; and these in their order there."""
    repeated = [each for each in constraints if each.family == families.REPEAT]
    others = [each for each in constraints if each.family != families.REPEAT]
    rng.shuffle(others)
    before, ending, sentences = _place_constraints(rng, task, others)
    request = _join_request(rng, task, before, ending)
    text = _lay_out(rng, task, request, [sentence for _, sentence in sentences])
    if not repeated:
        return text, others
    ordered = [*others, repeated[0]._replace(arguments={"prompt_to_repeat": text})]
    separator = rng.choice((" ", " ", "\n\n"))
    return text + separator + _phrase_constraint(rng, repeated[0], SENTENCE), ordered


def _place_constraints(
    rng: random.Random, task: Task, constraints: Sequence[Constraint]
) -> tuple[str, str, list[tuple[Constraint, str]]]:
    """A phrase before the request, one at its end, and sentences for all others."""
    before = ending = ""
    sentences = []
    for each in constraints:
        place = rng.random()
        if not before and task.has_room_before and each.phrases[BEGINNING] and place < 0.2:
            before = _phrase_constraint(rng, each, BEGINNING)
        elif not ending and task.has_room_after and each.phrases[ENDING] and place < 0.55:
            ending = _phrase_constraint(rng, each, ENDING)
        else:
            sentences.append((each, _phrase_constraint(rng, each, SENTENCE)))
    return before, ending, sentences


def _phrase_constraint(rng: random.Random, constraint: Constraint, place: str) -> str:
    phrase = choose_wording(rng, rng.choice(constraint.phrases[place]))
    return phrase.format(**constraint.shown)


def _join_request(rng: random.Random, task: Task, before: str, ending: str) -> str:
    request, mark = task.request, task.mark
    if before:
        request = f"{before}, {_lower_first(request)}"
    elif task.has_room_before:
        request, mark = _ask_politely(rng, request, mark)
    if ending:
        is_clause = task.kind in LONG_SUBJECTS or " that " in request
        request += ("" if ending[0] == "," else ", " if is_clause else " ") + ending
    return request if request.endswith((".", '."', '?"', '!"')) else request + mark


def _ask_politely(rng: random.Random, request: str, mark: str) -> tuple[str, str]:
    opening = rng.choice(("",) * 9 + ("Please", "Can you", "Could you", "I'd like you to"))
    if not opening:
        return request, mark
    return f"{opening} {_lower_first(request)}", "?" if opening.endswith(" you") else mark


def _lay_out(rng: random.Random, task: Task, request: str, sentences: list[str]) -> str:
    """One paragraph, several, or the constraints as a list; the text below or between."""
    text = f"\n\n{task.text}" if task.text else ""
    layout = rng.random()
    if len(sentences) > 1 and layout < 0.2:
        heading = rng.choice(HEADINGS)
        items = "\n".join([heading] * bool(heading) + [f"- {each}" for each in sentences])
        return f"{request}{text}\n\n{items}"
    context = rng.choice(CONTEXTS) + " " if layout > 0.85 and not text else ""
    rest = _connect(rng, sentences)
    if rest and layout < 0.3 and not any(POINTS_BACK & set(s.split()) for s in sentences):
        return f"{rest} {request}{text}"
    if rest and (layout < 0.4 or (text and layout < 0.7)):
        return f"{context}{request}{text}\n\n{rest}"
    return f"{context}{request}{' ' * bool(rest)}{rest}{text}"


def _connect(rng: random.Random, sentences: Sequence[str]) -> str:
    found = [*sentences[:1]]
    for sentence in sentences[1:]:
        joined = rng.choice(("",) * 5 + ("Also, ", "And ", "One more thing: "))
        found.append(joined + (_lower_first(sentence) if joined else sentence))
    return " ".join(found)


def _lower_first(sentence: str) -> str:
    """Small, except for `I` and what is written in capital letters."""
    word = sentence.split()[0]
    keeps = word in ("I", "I'd", "I'm") or (len(word) > 1 and word.isupper())
    return sentence if keeps else sentence[0].lower() + sentence[1:]
