"""The constraints that IFEval does not have: each is told apart, and none is ever trained on."""

import json
from collections import Counter

import pytest

from pipeline.config import EvaluationQuestions, PromptRows
from pipeline.config.rule_scorers import RuleScorer
from pipeline.config.score import list_criteria
from pipeline.data import unseen_constraints as written
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.scorers.unseen_constraints import CHECKS
from tests.scorers.test_rules import answer, run_scorer
from tests.support.house import composed, named

CFG = RuleScorer(kind="rules", rule="unseen_constraints", gold=True)
ROWS = [json.loads(line) for line in written.FILE.read_text().splitlines()]
# A constraint, an answer that obeys it, and one that nearly does.
CASES = {
    "next_letter": (
        {"letter": "C", "count": 3},
        "Cats sleep. Dogs bark! *Every* bird sings.",
        "Cats sleep. Dogs bark! Birds sing.",
    ),
    "no_repeated_word": (
        {"min": 5},
        "Rain falls on old roofs.",
        "Rain falls where rain fell before.",
    ),
    "exact_words": ({"count": 4}, "It's a well-known mill.", "It is a well-known mill."),
    "alternating_case": ({}, "THE river RUNS past OLD mills.", "THE river RUNS PAST old MILLS."),
    "emojis": (
        {"count": 4},
        "Family 👨‍👩‍👧, thumb 👍🏽, heart ❤️ and flag 🇫🇷.",
        "Heart ❤️ and thumb 👍🏽.",
    ),
    "no_first_person": ({}, "Miners meet a mime in Usk.", "The river, I'm told, is long."),
    "palindromes": ({"min": 2}, "Anna went kayaking, no: by kayak.", "A kayak, one more kayak."),
    "rising_numbers": ({"min": 3}, "In 3 days, 4.5 hours and 20 minutes.", "It took 3, 20 and 4."),
    "alternating_length": (
        {"count": 2, "short": 3, "long": 6},
        "It rains. The streets of the town are empty.",
        "It rains. The streets are empty.",
    ),
    "word_at": ({"word": "river", "place": 3}, "The old River runs.", "The river is old."),
    "sentence_endings": (
        {"letter": "n", "min": 2},
        "Look at the moon! It is drawn in.",
        "Look at the moon. It is high.",
    ),
    "banned_initial": ({"letter": "t", "min": 5}, "A river is no sea", "A river is the sea"),
    "staircase": ({"count": 3}, "Rain\n\non roofs\nfalls all day", "Rain\non roofs\nfalls again"),
    "only_questions": ({"count": 2}, "Why? Who knows?", "Why? Nobody knows."),
    "short_words": ({"max": 4, "min": 4}, "It is a mill.", "It is a bridge."),
    "hyphens": ({"min": 2}, "A well-known, old-time mill.", "A well-known and well-known mill."),
    "same_ends": ({"min": 4}, "Rain brings more rain.", "Rain brings more wind."),
    "acrostic": ({"word": "SUN"}, "- so it is\n- under\n- none", "so it is under none"),
    "one_comma": ({"min": 2}, "First, rain. Then, wind.", "First, rain. Then wind."),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_an_answer_that_obeys_is_told_from_one_that_nearly_does(kind):
    constraint, good, bad = CASES[kind]
    told = {"constraints": [{"kind": kind, **constraint}]}
    texts = [good, bad, f"<think>{bad}</think>{good}", "", "…"]
    rows = run_scorer(CFG, *(answer(text, **told) for text in texts))
    assert [row.score for row in rows if not row.criterion] == [1, 0, 1, 0, 0]


def test_the_score_is_the_share_and_the_criterion_is_all():
    two = [{"kind": "exact_words", "count": 2}, {"kind": "emojis", "count": 1}]
    rows = run_scorer(CFG, answer("Two words", constraints=two))
    assert {row.criterion: row.score for row in rows} == {"": 0.5, "all": 0.0}
    assert list_criteria(CFG) == ["all"]


def test_the_file_is_what_its_module_writes_and_asks_for_every_kind():
    assert [*written.make_rows()] == ROWS, "type python -m pipeline.data.unseen_constraints"
    counts = Counter(each["kind"] for row in ROWS for each in row["constraints"])
    assert set(counts) == set(CHECKS) and min(counts.values()) >= 15
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 300


GIVEN = [
    "prompts.path=prompts.jsonl",
    "score=rules",
    "sft.model=hub/model",
    f"sft.revision={'0' * 40}",
]


def test_one_word_asks_them_of_every_model_and_keeps_them_out_of_training():
    cfg = composed(*GIVEN, "benchmark=unseen_constraints")
    steps = named(plan(cfg))
    questions = steps["prompts@test unseen_constraints"].config
    assert isinstance(questions, EvaluationQuestions)
    assert cfg.prompts.evaluation["unseen_constraints"] == questions.rows
    assert isinstance(questions.rows, PromptRows)
    assert {"score@test sft unseen_constraints", "score@test round-1 unseen_constraints"} <= set(
        steps
    )
    with pytest.raises(UserError, match="a gold scorer scores test evaluations alone"):
        composed(*GIVEN, "+scorer@score.scorers.unseen=unseen_constraints")
