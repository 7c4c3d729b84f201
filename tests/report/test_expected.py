"""`expect`: what the config refuses, and what the report says of published figures."""

import pytest

from pipeline.config import Expectation
from pipeline.errors import UserError
from pipeline.report.analysis.expected import compare_expected
from pipeline.report.analysis.verdict import VerdictBasis
from tests.stages.test_evaluate import CONFIG, Run, scored
from tests.support.house import SMALL, composed, fingerprints

BASIS = VerdictBasis("test", 300, "rules", 0.95, "round-1")


def expect(before=None, after=None, tolerance=0.02):
    return Expectation(before=before, after=after, tolerance=tolerance, source="a paper")


def quiz(model, value, stderr):
    head = {"benchmark": "quiz", "model": model, "chief": True}
    return {**head, "value": value, "stderr": stderr}


@pytest.mark.parametrize(
    ("got", "stderr", "state"),
    [
        (0.843, 0.01, "within"),
        (0.823, 0.0, "within"),  # exactly the tolerance away
        (0.82, 0.001, "below"),
        (0.87, 0.001, "above"),
        (0.80, 0.02, "perhaps"),  # ± 0.039 reaches into the tolerance
        (0.80, None, "below"),  # nothing is known of chance
        (None, None, "unknown"),
    ],
)
def test_a_figure_is_within_outside_or_perhaps_outside(got, stderr, state):
    rows = [quiz("sft", 0.76, 0.01), quiz("round-1", got, stderr)]
    before, after = compare_expected({"quiz": expect(0.762, 0.843)}, BASIS, [], rows)
    assert (before["model"], before["state"]) == ("sft", "within")
    assert (after["model"], after["state"]) == ("round-1", state)


def test_the_sentence_has_the_published_figure_and_ours_with_its_interval():
    rows = [quiz("sft", 0.7, 0.01), quiz("round-1", 0.319, 0.011 / 1.96)]
    before, after = compare_expected({"quiz": expect(after=0.335)}, BASIS, [], rows)
    sentence = "quiz of round-1: expected 0.335, got 0.319 ± 0.011; within the tolerance."
    assert after["why"] == sentence
    assert before["why"] == "quiz of sft: expected unknown, got 0.700 ± 0.020; not known."


def test_where_sft_stays_the_best_nothing_was_trained_to_compare():
    stayed = VerdictBasis("test", 300, "rules", 0.95, "sft")
    rows = [quiz("sft", 0.76, 0.01), quiz("round-1", 0.843, 0.01)]
    before, after = compare_expected({"quiz": expect(0.762, 0.843)}, stayed, [], rows)
    assert (before["state"], after["state"], after["model"]) == ("within", "unknown", None)


def test_the_report_has_a_scorer_s_figures_and_its_markdown_the_table(tmp_path):
    run = Run(tmp_path)
    run.add("sft", scored(lambda i: 0.4 + 0.2 * (i % 2)))
    run.add("round-1", scored(lambda i: 0.6 + 0.2 * (i % 2)))
    published = {"rules": expect(0.5, 0.9), "rules/none": expect(after=1.0)}
    report = run.evaluate(config=CONFIG.model_copy(update={"expect": published}))
    found = {(row["metric"], row["model"]): row["state"] for row in report["expected"]}
    assert found == {
        ("rules", "sft"): "within",
        ("rules", "round-1"): "below",
        ("rules/none", "sft"): "unknown",
        ("rules/none", "round-1"): "unknown",
    }
    text = (run.out / "report.md").read_text()
    row = "| rules | round-1 | 0.900 | 0.700 (± 0.028) | 0.020 | below the tolerance | a paper |"
    assert "## Expected" in text and row in text
    page = (run.out / "report.html").read_text()
    assert page.index("below the tolerance") < page.index("How reliable is this result?")


def test_without_expectations_there_is_no_table(tmp_path):
    run = Run(tmp_path).add("sft", scored(0.5)).add("round-1", scored(0.6))
    assert run.evaluate()["expected"] == []
    assert "## Expected" not in (run.out / "report.md").read_text()


ENTRY = "{before: 0.1, after: 0.2, tolerance: 0.02, source: paper}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"expect={{gsm8: {ENTRY}}}"], r"expect\.gsm8: no benchmark and no scorer.*mean gsm8k"),
        (
            [f"expect={{gsm8k: {ENTRY}}}", "evaluate.split=dev"],
            r"expect\.gsm8k: benchmarks run on test alone\. Give evaluate\.split=test\. To exp",
        ),
        (
            ["expect={rules: {before: null, after: null, tolerance: 0, source: paper}}"],
            r"expect\.rules: before and after are both null",
        ),
        (["expect={rules: {after: 0.2}}"], r"expect\.rules lacks before, tolerance, source\."),
        ([f"expect={{rules: {ENTRY.replace('0.02', '-1')}}}"], r"expect\.rules\.tolerance"),
        ([f"expect={{rules: {ENTRY.replace('paper', ' null')}}}"], r"expect\.rules\.source"),
        (["expect=0.3"], r"expect=0\.3: "),
    ],
)
def test_what_cannot_be_expected_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        composed(*SMALL, "benchmark=gsm8k", *words)


def test_what_is_expected_changes_the_report_alone():
    plain = fingerprints(*SMALL)
    expecting = fingerprints(*SMALL, f"expect={{rules: {ENTRY}}}")
    assert {name for name in plain if plain[name] != expecting[name]} == {"evaluate@report"}
