"""The rows of recipes/twins/data, written by `python -m tests.support.twin_rows`.

Instructions and answers are the playground's, which a tiny model can learn, in the shapes of the
published data sets; mathematics is sums and differences of small numbers.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import PlaygroundPreferences
from pipeline.data.synthetic import generate_preferences

DATA = Path(__file__).parents[2] / "recipes" / "twins" / "data"
Row = dict[str, Any]
LEVELS = ("low", "medium", "high", "critical")
THINGS = ("apples", "lamps", "boats", "stones", "books", "birds", "cups", "keys")
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida")
FAULTS = (
    "{what} shows every customer's address.",
    "{what} is slow on Mondays.",
    "{what} accepts any password.",
    "{what} has a misspelt title.",
    "{what} loses one order in ten.",
)
PLACES = ("The shop", "The login page", "The archive", "The calendar", "The printer", "The map")


def write_data() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    for name, rows in make_files().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (DATA / f"{name}.jsonl").write_text("".join(lines))


def make_files() -> dict[str, list[Row]]:
    """Every file by its name. Each has prompts of its own."""
    return {
        "ultrafeedback_prompts": [_make_ultrafeedback(pair) for pair in _make_pairs(44, 1)],
        "ultrafeedback_pairs": [_make_ultrafeedback(pair) for pair in _make_pairs(40, 2)],
        "tulu3": [_make_tulu(pair, n) for n, pair in enumerate(_make_pairs(40, 3))],
        "olmo2": [_make_olmo(pair, n) for n, pair in enumerate(_make_pairs(40, 4))],
        "smoltalk2": [_make_smoltalk(pair) for pair in _make_pairs(40, 5)],
        "argilla": [_make_argilla(pair) for pair in _make_pairs(48, 6)],
        "constitutional": [_make_constitutional(pair) for pair in _make_pairs(32, 7)],
        "constitutional_prompts": [{"prompt": _read_text(pair)} for pair in _make_pairs(24, 10)],
        "thumbs": [row for pair in _make_pairs(32, 8) for row in _make_thumbs(pair)],
        "context_messages": [_make_context(pair) for pair in _make_pairs(56, 9)],
        "course": list(_make_reports()),
        "gsm8k": [_make_gsm8k(*one) for one in _make_sums(64, 11)],
        "numina": [_make_numina(*one) for one in _make_sums(64, 12)],
        "sums_sft": [_make_demonstration(*one) for one in _make_sums(140, 13)],
    }


# ── preferences ──────────────────────────────────────────────────────────────────────────────────


def _make_pairs(rows: int, seed: int) -> Iterator[Row]:
    cfg = PlaygroundPreferences(
        kind="playground", rows=rows, constraints=2, obeyed=0.5, flipped=0.0, seed=seed
    )
    return generate_preferences(cfg)


def _say(role: str, text: str) -> Row:
    return {"role": role, "content": text}


def _read_text(pair: Row) -> str:
    return pair["prompt"][0]["content"]


def _make_sides(pair: Row) -> Row:
    """Both sides with the prompt's turn, as most data sets have them."""
    asked = _say("user", _read_text(pair))
    return {side: [asked, _say("assistant", pair[side])] for side in ("chosen", "rejected")}


def _rate(pair: Row, side: str) -> float:
    return 1.0 + 8.0 * pair[f"{side}_score"]


def _make_ultrafeedback(pair: Row) -> Row:
    scores = {f"score_{side}": _rate(pair, side) for side in ("chosen", "rejected")}
    return {"prompt": _read_text(pair), **_make_sides(pair), **scores}


def _make_tulu(pair: Row, number: int) -> Row:
    return {"id": f"row_{number}", "source": "twin", **_make_sides(pair)}


def _make_olmo(pair: Row, number: int) -> Row:
    models = {"chosen_model": "large", "rejected_model": "small"}
    asked = {"prompt": _read_text(pair), "id": f"row_{number}", "dataset": "twin"}
    return {**_make_sides(pair), **models, **asked}


def _make_smoltalk(pair: Row) -> Row:
    modes = {"chat_template_kwargs": {"enable_thinking": False}, "source": "twin"}
    return {"prompt": _read_text(pair), **_make_sides(pair), **modes}


def _make_argilla(pair: Row) -> Row:
    answers = {f"{side}_response": pair[side] for side in ("chosen", "rejected")}
    ratings = {f"{side}_avg_rating": _rate(pair, side) for side in ("chosen", "rejected")}
    return {"source": "twin", "instruction": _read_text(pair), **answers, **ratings}


def _make_constitutional(pair: Row) -> Row:
    critique = {
        "init_response": pair["rejected"],
        "critic_prompt": "Where does this answer ignore what was asked?",
        "revision_response": pair["chosen"],
    }
    return {"prompt": _read_text(pair), **critique, **_make_sides(pair)}


def _make_thumbs(pair: Row) -> list[Row]:
    return [
        {
            "prompt": pair["prompt"],
            "completion": [_say("assistant", pair[side])],
            "label": side == "chosen",
        }
        for side in ("chosen", "rejected")
    ]


def _make_context(pair: Row) -> Row:
    return {"source": "twin", "context_messages": pair["prompt"]}


def _make_reports() -> Iterator[Row]:
    rng = random.Random("twins: reports")
    told = [fault.format(what=place) for fault in FAULTS for place in PLACES]
    rng.shuffle(told)
    leads = ("How bad is this?", "What should be done?")
    for report in told:
        for lead in leads:
            severity = LEVELS[FAULTS.index(_find_fault(report)) % len(LEVELS)]
            yield {"prompt": f"{report} {lead}", "severity": severity}


def _find_fault(report: str) -> str:
    return next(fault for fault in FAULTS if report.endswith(fault.removeprefix("{what}")))


# ── mathematics ──────────────────────────────────────────────────────────────────────────────────


def _make_sums(rows: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """A question, its way, and its result, which is from 2 to 9: a guess is right now and then."""
    rng = random.Random(f"twins: sums {seed}")
    known: set[str] = set()
    while len(known) < rows:
        result, part = rng.randint(2, 9), rng.randint(1, 8)
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        if part < result:
            question = f"{name} has {result - part} {thing} and finds {part} more."
            way = f"{result - part} + {part} = {result}"
        else:
            question = f"{name} has {result + part} {thing} and gives {part} away."
            way = f"{result + part} - {part} = {result}"
        question += f" How many {thing} does {name} have now?"
        if question not in known:
            known.add(question)
            yield question, way, result


def _make_gsm8k(question: str, way: str, result: int) -> Row:
    return {"question": question, "answer": f"{way}\n#### {result}"}


def _make_numina(question: str, way: str, result: int) -> Row:
    return {"source": "twin", "problem": question, "gt": str(result)}


def _make_demonstration(question: str, way: str, result: int) -> Row:
    answer = f"{way}, so the answer is \\boxed{{{result}}}."
    return {"messages": [_say("user", question), _say("assistant", answer)]}


if __name__ == "__main__":
    write_data()
