"""The playground: the same rows everywhere, demonstrations as noisy as asked, and rules that tell
right from wrong."""

import itertools
import random
import subprocess
import sys
from collections import Counter

import pytest

from pipeline.config import PlaygroundDemonstrations
from pipeline.data import synthetic
from pipeline.data.synthetic_topics import TOPICS
from pipeline.errors import UserError
from pipeline.hashing import hash_json
from pipeline.scorers import rules

FROZEN = "8be2cb589b79ba16"


def first(rows: int, constraints: int = 3, seed: int = 0) -> list[dict]:
    return list(synthetic.generate_prompts(rows, constraints, seed))


def text(row: dict) -> str:
    return row["prompt"][0]["content"]


def demonstrations(rows: int, obeyed: float = 0.5, seed: int = 0) -> list[dict]:
    cfg = PlaygroundDemonstrations(
        kind="playground", rows=rows, constraints=3, obeyed=obeyed, seed=seed
    )
    return list(synthetic.generate_demonstrations(cfg))


def test_the_first_50_prompts_and_demonstrations_are_frozen() -> None:
    assert hash_json([first(50), demonstrations(50)])[:16] == FROZEN


def test_another_process_with_another_hash_seed_makes_the_same_rows() -> None:
    code = (
        "from pipeline.data.synthetic import generate_prompts;"
        "from pipeline.hashing import hash_json;"
        "print(hash_json(list(generate_prompts(20, 3, 5))))"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert made == {hash_json(first(20, seed=5)) + "\n"}


def test_a_short_list_is_the_beginning_of_a_long_one_and_a_seed_changes_it() -> None:
    assert first(400)[:50] == first(50)
    assert not {text(row) for row in first(200)} & {text(row) for row in first(200, seed=1)}


def test_prompts_are_distinct_and_varied() -> None:
    rows = first(5000)
    assert len({text(row) for row in rows}) == 5000
    assert len({row["columns"]["topic"] for row in rows}) == len(TOPICS) == 36
    assert len({row["columns"]["category"] for row in rows}) == 6
    kinds = Counter(c["kind"] for row in rows for c in row["columns"]["constraints"])
    assert set(kinds) == set(synthetic.PHRASES)
    assert max(kinds.values()) < 1.1 * min(kinds.values())


@pytest.mark.parametrize("count", [1, 6])
def test_a_prompt_names_all_its_constraints_and_each_kind_once(count: int) -> None:
    for row in first(50, constraints=count):
        kinds = [c["kind"] for c in row["columns"]["constraints"]]
        assert len(set(kinds)) == count == len(kinds)
        asked = [
            str(c[key])
            for c in row["columns"]["constraints"]
            for key in ("word", "sentence")
            if key in c
        ]
        assert all(value in text(row) for value in asked)


def test_more_prompts_than_there_are_is_refused_and_so_is_a_kind_too_many() -> None:
    with pytest.raises(
        UserError, match=r"prompts.rows=100000: .* distinct prompts with prompts.constraints=1"
    ):
        first(100_000, constraints=1)
    with pytest.raises(UserError, match="constraints=7"):
        first(1, constraints=7)


def test_demonstrations_are_not_the_prompts_of_the_same_seed() -> None:
    asked = {row["messages"][0]["content"] for row in demonstrations(1000)}
    assert len(asked & {text(row) for row in first(1000)}) < 10


def test_an_answer_obeys_and_violates_exactly_what_it_is_told_to() -> None:
    """The grammar and the rules are written apart: they agree on every combination."""
    rng = random.Random("both ways")
    for row, told in zip(
        itertools.cycle(first(300)), itertools.product([True, False], repeat=3), strict=False
    ):
        constraints = row["columns"]["constraints"]
        topic = next(topic for topic in TOPICS if topic.name == row["columns"]["topic"])
        marks = rules.check_playground(
            synthetic.write_answer(rng, topic, constraints, list(told)), row["columns"]
        )
        assert [marks[c["kind"]] for c in constraints] == [float(obey) for obey in told]


@pytest.mark.parametrize("obeyed", [0.0, 0.5, 1.0])
def test_demonstrations_obey_as_often_as_configured(obeyed: float) -> None:
    rows = demonstrations(600, obeyed)
    marks = [
        rules.check_playground(row["messages"][1]["content"], row["columns"])[""] for row in rows
    ]
    assert sum(marks) / len(marks) == pytest.approx(obeyed, abs=0.04)


OBEYING_AND_NOT = {
    "sentences": (
        {"count": 2},
        ["One. Two.", "Is it? It is!", "  One.\nTwo. ", "One... Two."],
        ["One.", "One. Two. Three.", "One. Two", "One. Two. And", "One two"],
    ),
    "mention": (
        {"word": "river"},
        ["The river runs.", "River!", "a (river)"],
        ["The rivers run.", "Upriver.", "The water runs."],
    ),
    "open": (
        {"word": "Look"},
        ["Look, a bee.", "look", " Look: this."],
        ["Looking up.", "A look.", "So, look.", '"Look'],
    ),
    "close": (
        {"sentence": "So they say."},
        ["It is old. So they say.", "it is old. so they say.", "So they say."],
        ["It is old, so they say.", "So they say. Yes.", "So they say", "They say."],
    ),
    "avoid": ({"word": "it"}, ["Its tail.", "A fruit.", "So."], ["It is old.", "Leave it.", "it"]),
    "lower": ({}, ["so it is.", "1 bee."], ["So it is.", "so I say.", "ÉTÉ"]),
}


@pytest.mark.parametrize("kind", OBEYING_AND_NOT)
def test_each_rule_tells_obeying_from_violating(kind: str) -> None:
    parameters, good, bad = OBEYING_AND_NOT[kind]
    columns = {"constraints": [{"kind": kind, **parameters}]}
    assert {
        answer: rules.check_playground(answer, columns)[kind] for answer in good + bad
    } == dict.fromkeys(good, 1.0) | dict.fromkeys(bad, 0.0)


@pytest.mark.parametrize("empty", ["", "  \n", "...", "\ufffd"])
def test_an_empty_answer_obeys_nothing(empty: str) -> None:
    columns = {
        "constraints": [
            {"kind": kind, **parameters} for kind, (parameters, _, _) in OBEYING_AND_NOT.items()
        ]
    }
    assert set(rules.check_playground(empty, columns).values()) == {0.0}


def test_the_score_is_the_share_of_constraints_obeyed() -> None:
    columns = {
        "constraints": [
            {"kind": "lower"},
            {"kind": "avoid", "word": "it"},
            {"kind": "sentences", "count": 1},
        ]
    }
    assert rules.check_playground("So it is.", columns) == {
        "": pytest.approx(1 / 3),
        "lower": 0.0,
        "avoid": 0.0,
        "sentences": 1.0,
    }


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"constraints": []},
        {"constraints": [{"kind": "rhyme"}]},
        {"constraints": [{"kind": "open"}]},
    ],
)
def test_columns_that_no_rule_understands_raise(columns: dict) -> None:
    with pytest.raises((KeyError, ValueError, ZeroDivisionError)):
        rules.check_playground("An answer.", columns)
