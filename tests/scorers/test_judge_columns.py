"""What prompts give to a judge: references that decide, rubrics with weights; five levels."""

import json

import pytest

from pipeline.config import FileRows, Judge, PromptRows
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.preflight.rows import check_guides
from pipeline.report.analysis.agreement import LabelledPair, calibrate
from pipeline.scorers import Answer
from pipeline.scorers.judging import Response
from pipeline.scorers.judging.columns import RubricItem, count_turns, read_rubric
from pipeline.scorers.judging.pairwise import LABELS, OrderVerdict, PairVerdict
from pipeline.scorers.judging.parsing import parse_verdict
from pipeline.scorers.judging.template import JudgeTemplate
from tests.scorers.test_judge import config, judge, overall_scores, run_scorer, server
from tests.support.house import HOUSE, check_steps, composed

__all__ = ["judge", "server"]  # fixtures

FIVE = str(HOUSE / "conf" / "score" / "pairwise_5.md")
CITIES = ["Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Bern", "Sofia"]


def answer(prompt, place, text, columns, messages=None):
    asked = messages or [{"role": "user", "content": f"Which is the capital of {prompt}?"}]
    return Answer(f"{prompt}/{place}", prompt, asked, text, columns)


def capitals(with_reference=True):
    """Half the right answers sound worse than the wrong ones; half of them sound better."""
    given, pairs = [], {}
    for number, city in enumerate(CITIES):
        praise = "good good" if number % 2 else ""
        columns = {"reference": city} if with_reference else {}
        given.append(answer(f"p{number}", 0, f"It is {city}. {praise}", columns))
        given.append(answer(f"p{number}", 1, "It is a good place, London.", columns))
        pairs[f"p{number}"] = LabelledPair(f"p{number}", [1.0], 1, 1)
    return given, pairs


def agreement(scores, pairs):
    verdicts = {
        key: 0.5 if scores[f"{key}/0"] == scores[f"{key}/1"] else
        float(scores[f"{key}/0"] > scores[f"{key}/1"])
        for key in pairs
    }  # fmt: skip
    return calibrate(pairs, verdicts).pair_agreement


# ── references ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["pairwise", "rubric"])
def test_a_reference_raises_the_agreement_where_it_decides(judge, tmp_path, kind):
    given, pairs = capitals()
    alone = overall_scores(run_scorer(config(judge, tmp_path, kind), given))
    guided_by = config(judge, tmp_path, kind, reference_column="reference")
    guided = overall_scores(run_scorer(guided_by, given))
    assert agreement(alone, pairs) == 0.5 and agreement(guided, pairs) == 1.0


@pytest.mark.parametrize("kind", ["pairwise", "rubric"])
def test_a_prompt_without_its_reference_is_skipped_and_costs_nothing(judge, tmp_path, kind):
    given, _ = capitals()
    bare, _ = capitals(with_reference=False)
    cfg = config(judge, tmp_path, kind, reference_column="reference")
    found = run_scorer(cfg, [*given[:2], *bare[2:4]])
    asked = len(judge.asked())
    rows = [row for row in found if not row.criterion]
    assert [row.score is None for row in rows] == [False, False, True, True]
    skipped = [row for row in found if row.abstained]
    assert {row.detail for row in skipped} == {"no reference in the prompt's column reference"}
    assert {row.sample_id for row in skipped} == {"p1/0", "p1/1"} and len(skipped) == 2
    run_scorer(cfg, given[:2])
    assert len(judge.asked()) == asked == (2 if kind == "pairwise" else 6)


def test_mt_bench_s_other_categories_are_judged_without_one(judge, tmp_path):
    bare, _ = capitals(with_reference=False)
    cfg = config(judge, tmp_path, reference_column="reference", without_reference="judge")
    found = overall_scores(run_scorer(cfg, bare[:4]))
    plain = overall_scores(run_scorer(config(judge, tmp_path), bare[:4]))
    assert found == plain and None not in found.values() and len(judge.asked()) == 4


def test_each_turn_is_judged_by_the_references_up_to_it(judge, tmp_path):
    first = [{"role": "user", "content": "Capital?"}]
    second = [
        *first,
        {"role": "assistant", "content": "Rome"},
        {"role": "user", "content": "And its river?"},
    ]
    columns = {"turns": ["Capital?", "And its river?"], "reference": ["Rome", "Tiber"]}
    cfg = config(
        judge, tmp_path, "rubric", reference_column="reference", criteria={"correct": "is true"}
    )
    run_scorer(cfg, [answer("p", 0, "Rome", columns, first)])
    assert "Rome" in judge.asked()[0] and "Tiber" not in judge.asked()[0]
    run_scorer(cfg, [answer("p", 1, "The Tiber", columns, second)])
    assert "Reference answer 2:\\nTiber" in judge.asked()[1]
    one = {**columns, "reference": ["Rome"]}
    [skipped] = run_scorer(cfg, [answer("p", 2, "The Tiber", one, second)])
    assert skipped.abstained
    assert (count_turns(columns, second), count_turns({}, second)) == (2, 1)


@pytest.mark.parametrize("value", [{"text": "Rome"}, [["Rome"]], True])
def test_a_reference_that_is_no_text_is_refused_by_its_row(judge, tmp_path, value):
    cfg = config(judge, tmp_path, reference_column="reference")
    given = [answer("p7", i, text, {"reference": value}) for i, text in enumerate("ab")]
    with pytest.raises(UserError, match=r"j\.reference_column=reference: .* of the prompt p7 is"):
        run_scorer(cfg, given)
    assert judge.asked() == []


def test_a_template_of_references_has_to_show_them(judge, tmp_path):
    blind = config(judge, tmp_path).scorers["j"].template
    with pytest.raises(UserError, match=r"does not use \$reference"):
        JudgeTemplate(blind, {"first", "second", "reference"}, "word", 0)


def test_knobs_of_what_is_not_used_are_outside_identity(judge, tmp_path):
    unused = config(judge, tmp_path, "rubric").scorers["j"].outside_identity
    assert unused == {
        "reference_column",
        "reference_template",
        "without_reference",
        "rubric_column",
    }
    used = config(judge, tmp_path, "rubric", reference_column="r", rubric_column="w").scorers["j"]
    assert used.outside_identity == {"criteria"} and used.required_columns == ["r", "w"]
    five = config(judge, tmp_path, levels=5, reference_column="r").scorers["j"]
    assert five.outside_identity == frozenset()


# ── rubrics ─────────────────────────────────────────────────────────────────────────────────────

RUBRIC = [{"criterion": "mentions Rome", "weight": 3}, {"criterion": "mentions Tiber", "weight": 1}]


def test_the_items_of_a_prompt_s_rubric_are_weighed(judge, tmp_path):
    cfg = config(judge, tmp_path, "rubric", rubric_column="rubric", probabilities=False)
    given = [
        answer("p", 0, "Rome, Rome", {"rubric": RUBRIC}),
        answer("p", 1, "the Tiber", {"rubric": RUBRIC}),
        answer("q", 0, "no rubric here", {"rubric": None}),
        answer("r", 0, "nor here", {}),
    ]
    found = run_scorer(cfg, given)
    assert [row.criterion for row in found] == [""] * 4
    assert [row.score for row in found] == [(3 * 3 + 1) / 4, (3 * 1 + 2) / 4, None, None]
    assert json.loads(found[0].detail)["marks"] == [3.0, 1.0]
    assert [row.abstained for row in found] == [False, False, True, True]
    assert found[2].detail == "no rubric in the prompt's column rubric"
    assert len(judge.asked()) == 4


def test_an_item_without_a_verdict_leaves_no_score(judge, tmp_path):
    cfg = config(judge, tmp_path, "rubric", rubric_column="rubric", model="empty")
    [row] = run_scorer(cfg, [answer("p", 0, "Rome", {"rubric": RUBRIC})])
    assert row.score is None and not row.abstained and row.detail.startswith("item 1: the server's")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([{"criterion": "mentions Rome"}], "item 1 has no weight"),
        ([*RUBRIC, {"criterion": "x", "weight": 0}], "the weight of item 3 is 0"),
        ([{"criterion": "x", "weight": -2.5}], "the weight of item 1 is -2.5"),
        ([{"criterion": "x", "weight": True}], "the weight of item 1 is not a number"),
        ([{"criterion": "x", "weight": "2"}], "item 1 has no weight"),
        ([{"criterion": " ", "weight": 2}], "item 1 has no criterion"),
        (["mentions Rome"], "item 1 has no criterion"),
        ("mentions Rome", "it is not a list of items"),
        ({"mentions Rome": 2}, "it is not a list of items"),
    ],
)
def test_a_rubric_that_cannot_be_weighed_is_refused(value, said):
    with pytest.raises(UserError, match=rf"the prompt p7 cannot be used: {said}.*\n.*criterion"):
        read_rubric(value, "score.scorers.j.rubric_column=rubric", "p7")


def test_what_a_rubric_holds():
    assert read_rubric(RUBRIC, "", "p") == (
        RubricItem("mentions Rome", 3.0),
        RubricItem("mentions Tiber", 1.0),
    )
    assert read_rubric([], "", "p") == read_rubric(None, "", "p") == ()


def test_rows_are_refused_before_anything_is_sampled(judge, tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"id": "a", "prompt": "Capital?", "rubric": RUBRIC},
        {"id": "b", "prompt": "River?", "rubric": [{"criterion": "mentions Tiber"}]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = PromptRows(source=FileRows(kind="file", path=str(path)), shape="auto", columns={})
    cfg: Judge = config(judge, tmp_path, "rubric", rubric_column="rubric").scorers["j"]
    with pytest.raises(UserError, match=r"score\.scorers\.j\.rubric_column=rubric: .* prompt b"):
        check_guides(rows, "prompts", {"score.scorers.j": cfg})
    plain = config(judge, tmp_path, "rubric").scorers["j"]
    check_guides(rows, "prompts", {"score.scorers.j": plain})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["score.scorers.rubric.rubric_column=rubric"],
            "rubric_column=rubric: .* prompt r5 .*weight",
        ),
        (["score.scorers.rubric.reference_column=odd"], "reference_column=odd: .* prompt r4 is"),
        (["score.scorers.rubric.reference_column=none"], "reads the prompts' column none"),
        (
            [
                "+duel@evaluate.duels.d=default",
                "evaluate.duels.d.engine.model=m",
                "evaluate.duels.d.reference_column=none",
            ],
            r"evaluate\.duels\.d\.reference_column=none: no prompt has this column",
        ),
    ],
)
def test_a_plan_refuses_what_a_judge_could_not_read(tmp_path, words, said):
    rows = [{"id": f"r{i}", "prompt": f"Tell of number {i}.", "rubric": RUBRIC} for i in range(9)]
    rows[5]["rubric"] = [{"criterion": "is kind"}]
    rows[4]["odd"] = {"not": "text"}
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"prompts.path={path}", "sft.model=hub/model", f"sft.revision={'0' * 40}"]
    judged = [
        "score=rubric",
        "score.scorers.rubric.engine.model=m",
        "prompts.split={dev: 2, test: 2}",
    ]
    with pytest.raises(UserError, match=said):
        check_steps(plan(composed(*given, *judged, *words)).ancestors())


# ── five levels ─────────────────────────────────────────────────────────────────────────────────


def test_a_strong_win_counts_as_three(judge, tmp_path):
    """1 loses strongly to 0 and beats 2 slightly: one win of weight 1 in 4."""
    given = [answer("p", i, text, {}) for i, text in enumerate(["good good good", "good", "bad"])]
    found = run_scorer(config(judge, tmp_path, levels=5, template=FIVE), given)
    assert overall_scores(found) == {"p/0": 1.0, "p/1": 0.25, "p/2": 0.0}
    assert "it is slightly better" in judge.asked()[0]


def test_disagreement_of_the_orders_has_no_strength():
    strong, weak = OrderVerdict("a", 1.0, weight=3), OrderVerdict("a", 1.0)
    assert PairVerdict(strong, strong).weight == 3 and PairVerdict(strong, weak).weight == 2
    flipped = PairVerdict(strong, OrderVerdict("b", 0.0, weight=3))
    assert (flipped.probability, flipped.weight) == (0.5, 1)


def test_a_reply_as_arena_hard_s_judges_write_it(judge, tmp_path):
    given = [answer("p", i, text, {}) for i, text in enumerate(["good good", "bad"])]
    found = run_scorer(config(judge, tmp_path, levels=5, model="arena", template=FIVE), given)
    assert overall_scores(found) == {"p/0": 1.0, "p/1": 0.0}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A>>B", "A>>B"),
        ("[[A>>B]]", "A>>B"),
        ("a ≫ b.", "A>>B"),
        ("**B >> A**", "B>>A"),
        ("A<<B", "B>>A"),
        ("B<A", "A>B"),
        ("[A=B]", "A=B"),
        ("[[B=A]]", "A=B"),
        ("First [[A>B]], and again: [[A>B]]", "A>B"),
        ("Either [[A>B]] or [[B>A]]", None),
        ("I prefer A>B", None),
        ("A", None),
        ("TIE", None),
        ("[[A>>>B]]", None),
        ("", None),
    ],
)
def test_spellings_of_five_levels(text, label):
    first = {"A": 0.5, "B": 0.3, "A=": 0.2}  # says nothing of labels that begin alike
    verdict = parse_verdict(Response(text, first), LABELS[5], "word")
    assert verdict.label == label and bool(verdict.fault) == (label is None)
    assert dict(verdict.probabilities) == ({label: 1.0} if label else {})


def test_three_levels_are_read_as_strictly_as_ever():
    for text in ("[[A]]", "A>B", "It is [[A]]"):
        assert parse_verdict(Response(text), LABELS[3], "word").fault
