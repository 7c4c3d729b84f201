"""No sentence of a report is printed where it would be false.

For each sentence, a report where it was or would be false.
"""

import ast
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.pair import PairConfig
from pipeline.errors import UserError
from pipeline.plan import plan
from pipeline.report.analysis import changes, sanity_checks
from pipeline.report.analysis.benchmarks import apply_retention, check_retention
from pipeline.report.analysis.changes import write_note
from pipeline.report.analysis.comparison import conclude as compared_verdict
from pipeline.report.analysis.multiple_testing import correct_families
from pipeline.report.analysis.verdict import VerdictBasis, reach_verdict, write_headline
from pipeline.report.formatting import format_number, format_signed
from pipeline.report.render.comparison_page import _explain_power as power
from pipeline.report.render.reliability import explain_reliability
from pipeline.report.render.tables import models
from pipeline.training.monitoring.diagnostics import SYMPTOMS, find_symptoms
from tests.support.house import HOUSE, SMALL, composed

# ── reports ───────────────────────────────────────────────────────────────────


def make_gap(
    scorer: str, low: float | None, high: float | None, model: str = "round-1", **more: Any
) -> dict[str, Any]:
    mean = None if low is None or high is None else (low + high) / 2
    facts = {"n": 300, "missing": 0, "detectable": 0.05, "p_value": 0.5, "p_holm": 0.5}
    facts |= {"better": 0.3, "same": 0.5, "worse": 0.2}
    return {
        "model": model,
        "scorer": scorer,
        "against": "sft",
        "mean": mean,
        "low": low,
        "high": high,
        **facts,
        **more,
    }


def make_model(name: str, kl: float | None = 1.5, n: int = 300, **means: float) -> dict[str, Any]:
    ends = {"low": 0.4, "high": 0.6, "n": n, "failed": 0}
    marks = {scorer: {"mean": mean, **ends} for scorer, mean in ({"gold": 0.5} | means).items()}
    figures = {"mean": 10.0, "low": 9.0, "high": 11.0}
    return {"name": name, "metrics": marks, "tokens": figures, "kl": {**figures, "mean": kl}}


def make_basis(scorer: str = "gold", training: str | None = "reward", **more: Any) -> VerdictBasis:
    return VerdictBasis(
        "test",
        300,
        scorer,
        0.95,
        **{"chosen": "round-1", "gold": ("gold",), "training": training, **more},
    )


def explain(
    of: VerdictBasis, *gaps: dict[str, Any], sft: dict[str, Any] | None = None, **chosen: Any
) -> str:
    names = {row["scorer"]: 0.5 for row in gaps}
    return reach_verdict(
        of,
        [sft or make_model("sft", 0.0, **names), make_model("round-1", **(names | chosen))],
        gaps,
    )["why"]


def make_report(of: VerdictBasis, *gaps: dict[str, Any], **more: Any) -> dict[str, Any]:
    names = {row["scorer"]: 0.5 for row in gaps}
    known = [make_model("sft", 0.0, **names), make_model("round-1", **names)]
    shown = {
        "evaluation": {**vars(of)},
        "setup": None,
        "models": known,
        "differences": list(gaps),
        "duels": [],
        "changes": [],
        "retention": [],
        "expected": [],
        "verdict": reach_verdict(of, known, gaps),
        "control": sanity_checks.check_control(of, gaps, []),
        "proxy": sanity_checks.check_proxy(of, known, gaps),
        "ceiling": sanity_checks.check_ceiling(of, gaps),
    }
    return {**shown, **more}


# ── the verdict: who can be pleased ───────────────────────────────────────────


def test_only_a_scorer_that_made_pairs_can_be_pleased():
    """`mine` is gold and rose, `rand` made the pairs and decides: `mine` was not over-optimised."""
    of = make_basis("rand", training="rand", gold=("mine",))
    why = explain(of, make_gap("rand", -0.05, 0.05), make_gap("mine", 0.1, 0.2))
    assert "please" not in why and "or fix" not in why
    assert "By mine it rose by +0.150, +0.100 to +0.200." in why and "prompts.split.test" in why
    assert "learned to please reward" in explain(
        make_basis(), make_gap("gold", -0.2, -0.1), make_gap("reward", 0.1, 0.2)
    )


def test_where_no_scorer_made_pairs_none_can_be_pleased():
    """Offline pairs and demonstrations were judged by somebody else."""
    of = make_basis("reward", training=None)
    gaps = (make_gap("reward", 0.1, 0.2), make_gap("gold", -0.05, 0.05))
    assert (
        reach_verdict(
            of, [make_model("sft", reward=0.5), make_model("round-1", reward=0.65)], gaps
        )["better"]
        == "yes"
    )
    assert (
        "made pairs" not in explain(of, *gaps)
        and sanity_checks.check_proxy(of, [make_model("round-1")], gaps) is None
    )
    assert dict(explain_reliability(make_report(of, *gaps)))["Gold"].startswith(
        "No scorer made pairs here"
    )


def make_pairs(*words: str) -> PairConfig:
    return composed(*SMALL, *words).pair


def test_the_plan_knows_whether_a_scorer_made_the_pairs():
    offline = ["offline=file", "offline.source.path=rows.jsonl"]
    assert make_pairs().pairing_scorer == "rules"
    assert make_pairs(*offline, "pair.mix.on_policy=0", "pair.mix.offline=1").pairing_scorer is None
    assert (
        make_pairs(*offline, "pair.mix.on_policy=0.5", "pair.mix.offline=0.5").pairing_scorer
        == "rules"
    )
    assert make_pairs("pair=demonstration").pairing_scorer is None
    for words, maker in (((), "rules"), (("pair=demonstration",), None)):
        assert plan(composed(*SMALL, *words)).config.training == maker


def test_a_gold_score_that_rises_too_little_to_be_sure_is_not_said_to_stand_still():
    of = make_basis("reward")
    why = explain(of, make_gap("reward", 0.05, 0.15), make_gap("gold", -0.01, 0.17))
    assert "may have learned to please reward" in why and "does not clearly follow" in why
    shown = make_report(of, make_gap("reward", 0.05, 0.15), make_gap("gold", -0.01, 0.17))
    assert (
        write_headline(shown)
        == "round-1 may have learned to please reward; the gold score does not clearly follow."
    )
    assert "It may have learned to please reward." in shown["proxy"]["why"]
    flat = make_report(of, make_gap("reward", 0.05, 0.15), make_gap("gold", -0.1, 0.02))
    assert (
        write_headline(flat) == "round-1 learned to please reward; the gold score does not follow."
    )


# ── the verdict: its figures ──────────────────────────────────────────────────


def test_means_of_other_prompts_are_no_part_of_a_difference():
    """45 of 60 prompts have both scores: sft's mean over 60 is not its mean on those 45."""
    of = make_basis("reward")
    why = explain(
        of,
        make_gap("reward", 0.05, 0.15, n=45),
        sft=make_model("sft", n=60, reward=0.9),
        n=45,
        reward=0.6,
    )
    assert "against sft's" not in why and "0.900" not in why
    assert (
        "On the 45 test prompts where both have a score of reward,"
        " round-1 differs from sft by +0.100" in why
    )
    whole = explain(
        of, make_gap("reward", 0.05, 0.15), sft=make_model("sft", reward=0.5), reward=0.6
    )
    assert "round-1 scores 0.600 against sft's 0.500" in whole


def test_a_comparison_s_means_are_of_the_prompts_that_it_names():
    def why(n: int) -> str:
        ground = {"chief": "rules", "level": 0.95}
        each = [
            {"name": name, "metrics": {"rules": {"mean": 0.9, "n": n}}} for name in ("one", "two")
        ]
        found = {
            "models": each,
            "differences": [make_gap("rules", 0.05, 0.15, "two", n=45)],
            "ground": ground,
        }
        return compared_verdict(found)["why"]

    assert "scores 0.900 against 0.900" in why(45)
    assert "0.900" not in why(60) and "two differs from one by +0.100" in why(60)


def test_a_comparison_names_how_many_have_scores_and_bears_a_model_without_any():
    ground = {"chief": "rules", "level": 0.95, "asked": 60}
    each = [{"name": name, "metrics": {"rules": {"mean": 0.9, "n": 45}}} for name in ("one", "two")]
    silent = {"name": "three", "metrics": {}}
    gaps = [
        make_gap("rules", 0.05, 0.15, "two", n=45),
        make_gap("rules", None, None, "three", n=0, detectable=None),
    ]
    found = {"models": [*each, silent], "differences": gaps, "ground": ground}
    why = compared_verdict(found)["why"]
    assert (
        "two scores 0.900" in why
        and "No scorer scored both three and one on a common prompt." in why
    )
    assert (
        power(found)
        == "This many prompts can detect a difference of 0.050 (two, on 45 with scores)"
        " with 80 % power."
    )


def test_no_beta_holds_a_policy_where_the_loss_has_no_reference():
    """In orpo it is the weight of the preferences: raising it moves the policy further."""
    for one in SYMPTOMS:
        assert "raise {beta}" not in one.remedy or "has a reference" in one.remedy


def test_a_scorer_by_which_it_is_surely_worse_is_not_called_not_clearly_better():
    why = explain(
        make_basis("gold"),
        make_gap("gold", 0.05, 0.15),
        make_gap("other", -0.3, -0.1),
        make_gap("third", -0.1, 0.1),
    )
    assert "By other it is worse: −0.200" in why and "By third it is not clearly better" in why


def test_equal_scores_detect_nothing():
    """All paired differences are zero: no sentence claims that 0.000 can be detected."""
    same = make_gap("gold", 0.0, 0.0, detectable=0.0)
    why = explain(make_basis(), same)
    assert "can detect" not in why and "0.000:" not in why.partition("interval")[2]
    assert "gold gives both models the same score on every prompt" in why
    shown = make_report(make_basis(), same)
    assert "This many prompts can detect" not in models.build_models(shown).note
    assert (
        "can detect a difference of 0.050"
        in models.build_models(make_report(make_basis(), make_gap("gold", -0.1, 0.1))).note
    )


@pytest.mark.parametrize(("low", "is_told"), [(-0.02, True), (0.0, False), (None, False)])
def test_a_kl_whose_interval_goes_below_zero_is_explained_and_no_other(low, is_told):
    shown = make_report(make_basis(), make_gap("gold", -0.1, 0.1))
    ends = {"mean": low, "low": low, "high": low and 0.03}
    shown["models"][1]["kl"] |= {**ends, "why": "not sampled"}
    assert ("noise can make it negative" in models.build_models(shown).note) is is_told


def test_a_score_that_is_not_zero_is_not_written_as_zero():
    """Scores in millionths: "a difference of 0.000, 0.000 to 0.000" shows no gain."""
    assert (format_number(2.5e-6), format_number(-2.5e-6), format_signed(2.5e-6)) == (
        "2.5e-06",
        "−2.5e-06",
        "+2.5e-06",
    )
    assert (
        format_number(0.0),
        format_signed(1e-16),
        format_number(-1e-16),
        format_number(0.0004, 2),
    ) == ("0.000", "0.000", "0.000", "0.00")
    why = explain(
        make_basis(), make_gap("gold", 2e-6, 4e-6), sft=make_model("sft", gold=1e-6), gold=4e-6
    )
    assert (
        "scores 4e-06 against sft's 1e-06" in why
        and "of +3e-06, 95 % interval +2e-06 to +4e-06." in why
    )


def test_so_many_are_those_that_have_scores():
    """300 prompts are examined, and both models have a score on 45 of them."""
    note = models.build_models(make_report(make_basis(), make_gap("gold", -0.1, 0.1, n=45))).note
    assert "This many prompts can detect" not in note
    assert "The 45 on which round-1 and sft have scores can detect a difference of 0.050" in note
    one = models.build_models(
        make_report(
            make_basis(), make_gap("gold", None, None, n=1) | {"mean": 0.2, "detectable": None}
        )
    ).note
    assert (
        "is not known from the scores of one prompt." in one
        and "without scores of two models" not in one
    )


def test_a_small_scale_detects_no_zero():
    why = explain(make_basis(), make_gap("gold", -1e-5, 1e-5, detectable=3e-5))
    assert "can detect a difference of 3e-05" in why


def test_a_kl_estimate_below_zero_is_no_sign_of_standing_still():
    """Few samples: the mean log-ratio came out at −0.6, which is noise."""
    assert "hardly moved" not in explain(make_basis(), make_gap("gold", -0.05, 0.05), kl=-0.6)
    assert "hardly moved from sft (0.02 nats)" in explain(
        make_basis(), make_gap("gold", -0.05, 0.05), kl=0.02
    )


def test_a_model_that_is_worse_and_hardly_moved_took_no_large_step():
    why = explain(make_basis(), make_gap("gold", -0.2, -0.1), kl=0.01)
    assert "Too large a step" not in why and "pair.filters.min_margin" in why
    assert "Too large a step" in explain(make_basis(), make_gap("gold", -0.2, -0.1), kl=1.0)


def test_where_the_gate_passed_a_better_round_by_nobody_says_that_none_is_better():
    of = make_basis(chosen="sft")
    shown = make_report(of, make_gap("gold", 0.05, 0.15))
    assert write_headline(shown) == "No trained model was preferred to sft."
    assert "Too large a step" not in shown["verdict"]["why"]
    assert "round-1 scores better than sft on test: +0.100" in shown["verdict"]["why"]
    assert "gate.min_gain" in shown["verdict"]["why"]
    worse = make_report(of, make_gap("gold", -0.15, -0.05))
    assert (
        "Too large a step" in worse["verdict"]["why"]
        and "scores better" not in worse["verdict"]["why"]
    )


def test_a_round_that_is_as_good_as_sft_took_no_large_step():
    """The gate kept SFT: the round is not worse, its gain was merely not above gate.min_gain."""
    of = make_basis(chosen="sft")
    why = explain(of, make_gap("gold", -0.05, 0.05))
    assert "Too large a step" not in why
    assert (
        "By gold round-1 cannot be distinguished from sft on test either: 0.000, −0.050 to +0.050."
        in why
    )
    assert "Too large a step" not in explain(of, make_gap("gold", 0.1, 0.2, n=12))
    assert "Too few test prompts have a score of gold to distinguish round-1 from sft" in explain(
        of, make_gap("gold", None, None, n=0)
    )


def test_a_round_that_the_gate_called_too_far_is_sent_to_the_budget():
    rejected = {"model": "round-1", "kl": 0.4, "outcome": "too far"}
    gate = {"candidates": [rejected], "kl_budget": 0.0001, "min_gain": 0.0}
    both = [make_model("sft", 0.0), make_model("round-1", 0.05)]
    of = make_basis(chosen="sft")
    why = reach_verdict(of, both, [make_gap("gold", 0.1, 0.3)], gate)["why"]
    assert "0.40 nats from sft, over gate.kl_budget=0.0001. Raise gate.kl_budget" in why
    assert "raise train.learning_rate" not in why and "min_gain" not in why


@pytest.mark.parametrize(("min_gain", "is_offered"), [(0.0, False), (0.03, True)])
def test_a_gain_that_cannot_be_lowered_is_not_offered(min_gain, is_offered):
    gate = {"candidates": [], "kl_budget": None, "min_gain": min_gain}
    both = [make_model("sft", 0.0), make_model("round-1")]
    of = make_basis(chosen="sft")
    why = reach_verdict(of, both, [make_gap("gold", -0.1, 0.1)], gate)["why"]
    assert ("lower gate.min_gain" in why) is is_offered


def test_an_unclear_model_that_is_far_from_sft_is_not_to_be_trained_further():
    why = explain(make_basis(), make_gap("gold", -0.1, 0.1), kl=147.4)
    assert "train further" not in why and "147.4 nats away from sft: lower" in why


def test_float32_is_offered_where_it_is_not_chosen():
    why = explain(make_basis(unchanged=True), make_gap("gold", -0.1, 0.1))
    assert "Where train.dtype is bfloat16, train.dtype=float32" in why


def test_a_round_that_no_step_changed_took_no_large_step_where_sft_was_chosen():
    why = explain(make_basis(chosen="sft", unchanged=True), make_gap("gold", -0.2, -0.1), kl=None)
    assert (
        "The round-1 model’s weights are byte for byte those that its training started from" in why
    )
    assert "Too large a step" not in why


def test_pairs_that_no_scorer_made_have_no_margin_to_raise():
    for kl in (0.01, 1.0):
        why = explain(make_basis(training=None), make_gap("gold", -0.2, -0.1), kl=kl)
        assert "min_margin" not in why and "pair.scorer" not in why and "strop edit" in why


def test_what_the_badge_calls_better_has_no_headline_against_it():
    """It rose by the deciding gold scorer; a second one does not follow, as the verdict says."""
    of = make_basis(gold=("gold", "second"))
    shown = make_report(
        of, make_gap("gold", 0.1, 0.2), make_gap("reward", 0.1, 0.2), make_gap("second", -0.1, 0.02)
    )
    assert (
        shown["verdict"]["better"] == "yes"
        and "By second it is not clearly better" in shown["verdict"]["why"]
    )
    assert write_headline(shown) == "round-1 is better than sft."


def test_too_few_prompts_and_an_unknown_benchmark_are_no_gain():
    """A verdict needs 30 prompts; so does the headline that says that the score rose."""
    unknown = [{"name": "gsm8k", "state": "unknown", "why": "not known"}]
    few = make_report(make_basis(), make_gap("gold", 0.1, 0.2, n=20), retention=unknown)
    assert write_headline(few) == "It is unclear whether round-1 is better than sft."
    many = make_report(make_basis(), make_gap("gold", 0.1, 0.2), retention=unknown)
    many["verdict"] = apply_retention(many["verdict"], unknown, "round-1")
    assert (
        write_headline(many)
        == "round-1 scores better than sft; whether gsm8k was kept is not known."
    )


def test_one_score_of_a_capability_is_not_none():
    [row] = check_retention(
        {"gold": 0.1}, make_basis(), [], [make_gap("gold", None, None, n=1) | {"mean": 0.2}]
    )
    assert "no prompt" not in row["why"] and "too few to tell (+0.200, on 1)" in row["why"]
    [none] = check_retention({"gold": 0.1}, make_basis(), [], [make_gap("gold", None, None, n=0)])
    assert "no prompt has a score of gold for both models" in none["why"]


def test_where_scores_failed_the_reader_is_not_sent_to_an_empty_list_alone():
    why = explain(make_basis(), make_gap("gold", None, None, n=0))
    assert "see what is missing" in why and "how many scores failed" in why
    assert "how many scores failed" in explain(make_basis(), make_gap("gold", 0.1, 0.2, n=12))


# ── what changed ──────────────────────────────────────────────────────────────


def test_the_level_of_what_changed_is_never_rounded_to_zero():
    for level, alpha in ((0.999, "0.001"), (0.95, "0.05")):
        note = write_note({"evaluation": {"level": level, "scorer": "rules"}})
        assert f"is below {alpha}," in note


def test_the_verdict_and_the_list_of_changes_have_one_criterion():
    """The primary test was planned: its interval decides, however many models are compared."""
    of = make_basis()
    shown = make_report(of, make_gap("gold", 0.007, 0.098), make_gap("reward", 0.01, 0.1))
    assert write_headline(shown) == "round-1 is better than sft."
    states = {each.name: each.changed for each in changes.list_changes(shown)}
    assert states == {"Score by gold": True, "Score by reward": False}
    few = make_report(of, make_gap("gold", 0.1, 0.2, n=20))
    assert few["verdict"]["better"] == "unclear" and not changes.list_changes(few)[0].changed


def test_the_planned_test_is_corrected_for_no_other():
    rows = [make_gap("gold", 0.1, 0.2, name, p_value=0.03) for name in ("round-1", "a", "b")]
    corrected, _ = correct_families(rows, [], primary=("round-1", "gold"))
    assert [row["p_holm"] for row in corrected] == [0.03, 0.06, 0.06]
    assert "planned beforehand: it changed" in write_note(make_report(make_basis()))


def test_one_prompt_has_no_interval_in_any_sentence():
    one = make_gap("gold", None, None, n=1) | {"mean": 0.0, "detectable": None}
    of = VerdictBasis("test", 1, "gold", 0.95, "round-1", "reward", ("gold",))
    shown = make_report(of, one, {**one, "scorer": "reward"})
    assert models.build_models(shown).note.startswith("1 test prompt. ")
    assert "–" not in shown["proxy"]["why"]
    assert "differs from sft by 0.000; by gold" in shown["proxy"]["why"]


def test_a_rate_that_counts_ties_is_not_called_won():
    """20 wins and 80 ties of 100 are a win rate of 60 %, and 20 % won."""
    duel = {
        "a": "round-1",
        "b": "sft",
        "judge": "m",
        "wins": 20,
        "ties": 80,
        "losses": 0,
        "win_rate": 0.6,
    }
    duel |= {"low": 0.55, "high": 0.65, "p_holm": 0.001}
    [change] = changes.list_changes(make_report(make_basis(), duels=[duel]))
    assert change.figures == "win rate 60.0 % (55.0 % to 65.0 %), a tie is half a win"
    again = sanity_checks.check_control(make_basis(), [], [{**duel, "a": "control"}])
    assert again and "won" not in again["why"] and "win rate 60.0 %" in again["why"]


# ── doubts ────────────────────────────────────────────────────────────────────


def test_a_control_that_chance_alone_tells_apart_may_be_chance():
    """At 95 % one sound pipeline in twenty differs from itself."""
    again = sanity_checks.check_control(
        make_basis(), [make_gap("gold", 0.01, 0.1, "control", p_holm=0.03)], []
    )
    assert again and "unless chance did it, as in 5.0 % of runs" in again["why"]


def test_a_control_that_is_not_told_apart_is_not_called_equal():
    steady = sanity_checks.check_control(
        make_basis(), [make_gap("gold", -0.3, 0.4, "control", n=3)], []
    )
    assert (
        steady
        and "does not differ" not in steady["why"]
        and "cannot be distinguished from itself" in steady["why"]
    )


def test_a_ceiling_that_is_not_clear_is_not_zero():
    """Best of 4 gains +0.2 (−0.01 to +0.41) on few prompts: there may be much to capture."""
    shown = make_report(make_basis(), make_gap("gold", -0.01, 0.41, "best-of-4"))
    assert "nothing can be gained" not in models.build_models(shown).note
    assert "how much can be gained is not known" in models.build_models(shown).note


def test_a_model_that_lost_gains_no_negative_part():
    shown = make_report(
        make_basis(), make_gap("gold", 0.1, 0.2, "best-of-4"), make_gap("gold", -0.3, -0.1)
    )
    assert (
        "Of what best-of-4 gains over sft, round-1 gains nothing."
        in models.build_models(shown).note
    )


# ── trust ─────────────────────────────────────────────────────────────────────


def test_a_gold_scorer_without_the_one_that_made_pairs_is_not_denied():
    """Pairs by a judge, evaluations by a gold scorer alone: it made no pairs, and is here."""
    why = dict(
        explain_reliability(make_report(make_basis(training="judge"), make_gap("gold", 0.1, 0.2)))
    )
    assert "No scorer" not in why["Gold"] and "evaluate.score.scorers.judge" in why["Gold"]
    assert (
        "evaluate.score.scorers.gold.gold=true"
        in dict(explain_reliability(make_report(make_basis(gold=()), make_gap("gold", 0.1, 0.2))))[
            "Gold"
        ]
    )


def test_where_the_scorer_that_made_pairs_is_the_only_one_another_has_to_be_added():
    """`evaluate.score.scorers.NAME.gold=true` alone is refused without a scorer of that name."""
    shown = make_report(make_basis("gold", training="gold", gold=()), make_gap("gold", 0.1, 0.2))
    added = "+scorer@evaluate.score.scorers.NAME=FILE evaluate.score.scorers.NAME.gold=true"
    assert added in dict(explain_reliability(shown))["Gold"]
    assert not find_refusal(*added.replace("NAME", "long").replace("FILE", "length").split())


def test_where_sft_was_chosen_its_gold_scorer_is_not_denied():
    why = dict(
        explain_reliability(
            make_report(
                make_basis(chosen="sft"), make_gap("gold", 0.1, 0.2), make_gap("reward", 0.1, 0.2)
            )
        )
    )
    assert (
        "No scorer" not in why["Gold"]
        and "The chosen model was not trained on pairs of reward" in why["Gold"]
    )


def test_people_who_judged_are_not_nobody():
    duel = {
        "a": "round-1",
        "b": "sft",
        "judge": "people",
        "wins": 9,
        "ties": 0,
        "losses": 1,
        "flip_rate": None,
    }
    why = dict(
        explain_reliability(make_report(make_basis(), make_gap("gold", 0.1, 0.2), duels=[duel]))
    )
    assert "No judge" not in why["Flips"] and "people" in why["Flips"]
    assert (
        "+duel@evaluate.duels"
        in dict(explain_reliability(make_report(make_basis(), make_gap("gold", 0.1, 0.2))))["Flips"]
    )


def test_a_control_cannot_be_had_on_dev_by_its_own_knob_alone():
    of = VerdictBasis("dev", 300, "gold", 0.95, "round-1", "reward", ("gold",))
    assert (
        "evaluate.split=test with evaluate.control=true"
        in dict(explain_reliability(make_report(of, make_gap("gold", 0.1, 0.2))))["A/A control"]
    )


def test_what_calibrates_a_scorer_names_it():
    assert (
        "strop calibrate verdicts.jsonl scorer=gold"
        in dict(explain_reliability(make_report(make_basis(), make_gap("gold", 0.1, 0.2))))[
            "Calibration"
        ]
    )


def test_what_an_ensemble_combines_is_not_offered_as_gold():
    """Both made the pairs: one of another name has to be added."""
    of = make_basis("len", training="both", gold=(), members=("len", "rules"))
    gaps = [make_gap(name, 0.1, 0.2) for name in ("len", "rules", "gold")]
    shown = make_report(of, *gaps)
    assert "rules.gold" not in dict(explain_reliability(shown))["Gold"]
    for model in shown["models"]:
        del model["metrics"]["gold"]
    assert "+scorer@evaluate.score.scorers.NAME=FILE" in dict(explain_reliability(shown))["Gold"]


def test_calibration_is_offered_for_what_reads_texts_alone():
    why = dict(explain_reliability(make_report(make_basis(), make_gap("gold", 0.1, 0.2))))
    assert why["Calibration"].startswith("If gold is one of score.scorers and reads texts alone")
    assert "this run's recipe and overrides" in why["Calibration"]


# ── symptoms ──────────────────────────────────────────────────────────────────


def make_steps(**curves: list[float]) -> list[dict[str, Any]]:
    rows = enumerate(zip(*curves.values(), strict=True), 1)
    return [{"step": at, **dict(zip(curves, row, strict=True))} for at, row in rows]


def make_ramp(start: float, end: float, count: int = 20) -> list[float]:
    return [start + (end - start) * at / (count - 1) for at in range(count)]


LOOKS = {
    "eval_rewards/margins": [0.1, 0.3, 0.6, 1.0, 1.5],
    "eval_score": [0.6, 0.7, 0.5, 0.55, 0.6],
}


@pytest.mark.parametrize(
    ("unsaid", "rows"),
    [
        # another loss that passes 0.693 while the pairs are distinguished
        (
            "the loss stays",
            make_steps(**{"loss": [math.log(2)] * 20, "rewards/margins": make_ramp(0.1, 2.0)}),
        ),
        # the chosen side rises thirty times as far as the rejected one: their difference is learned
        (
            "both rise",
            make_steps(
                **{"rewards/chosen": make_ramp(0, 6), "rewards/rejected": make_ramp(0, 0.2)}
            ),
        ),
        # a steady fall is not a swing, however far it goes
        ("swings", make_steps(loss=make_ramp(1.2, 0.12))),
        # past its best and rising again
        ("dev score falls", make_steps(**LOOKS)),
    ],
)
def test_a_symptom_is_not_seen_where_it_is_not(unsaid, rows):
    assert not [one.name for one in find_symptoms(rows) if unsaid in one.name]


# ── every knob that a sentence names ──────────────────────────────────────────

SPEAKING = [
    *(HOUSE / "pipeline" / "report").rglob("*.py"),
    *(
        HOUSE / "pipeline" / "training" / "monitoring" / name
        for name in ("diagnostics.py", "guards.py", "early_stopping.py")
    ),
]
GROUPS = (
    "train|pair|sample|score|evaluate|prompts|gate|reward|reference|sft|offline|best_of_n|sweep|limits"
    "|template"
)
KNOB = re.compile(rf"(?<![\w./@+])(?:{GROUPS})(?:\.[a-z_A-Z]+)+(?:=[\w.\[\]]+)?")
CHOICE = re.compile(r"(?<![\w./@+])(?:train|pair|score|reward|gate|offline)=[a-z_0-9]+")
# What each needs in addition, as the reader of the sentence has it.
BESIDE = {
    "train.guards.stop_on": ["+scorer@train.guards.scorer=length"],
    "gate": ["gate=best"],
    "train.args.mask_truncated_completions": ["train=grpo"],
    "prompts.near_duplicate": ["prompts=instructions"],
    "evaluate.duels": ["+duel@evaluate.duels.NAME=default", "evaluate.duels.NAME.engine.model=m"],
}
FILES = {"gate.json", "sweep.html", "train.parquet"}


def list_texts(path: Path) -> list[str]:
    """Every text of a module but docstrings; what an f-string fills in is NAME."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "NAME" for part in node.values
                )
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not {id(node)} & (docs | parts)
        ):
            found.append(node.value)
    return found


def find_knobs() -> dict[str, set[str]]:
    """Each knob that a sentence names, and the modules that do."""
    found: dict[str, set[str]] = {}
    for path in SPEAKING:
        for text in list_texts(path):
            for named in [*KNOB.findall(text), *CHOICE.findall(text)]:
                found.setdefault(named.rstrip("."), set()).add(path.name)
    return {knob: where for knob, where in found.items() if knob not in FILES}


@cache
def whole_config(*words: str) -> dict[str, Any]:
    return composed(*SMALL, *words).model_dump()


def knob_exists(knob: str) -> bool:
    """Whether the composed config has it; NAME is whatever has a name there."""
    beside = next((words for start, words in BESIDE.items() if knob.startswith(start)), [])
    here: Any = whole_config(*beside)
    for part in knob.split("."):
        if not isinstance(here, dict):
            return False
        if part == "NAME":
            here = next(iter(here.values()), None)
        elif part in here:
            here = here[part]
        else:
            return False
    return True


def test_every_knob_that_a_sentence_names_exists():
    named = find_knobs()
    assert {
        "train.beta",
        "pair.filters.min_margin",
        "pair=length_matched",
        "gate.min_gain",
    } <= named.keys()
    lost = {
        knob: where
        for knob, where in named.items()
        if "." in (name := knob.partition("=")[0])
        and not name.startswith("train.args.")  # TRL's: the next test composes them
        and not knob_exists(name)
    }
    assert not lost


def find_refusal(*words: str) -> str:
    try:
        composed(*SMALL, *words)
    except UserError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize(
    "word", sorted(knob for knob in find_knobs() if "=" in knob and "NAME" not in knob)
)
def test_every_value_that_a_sentence_names_composes(word):
    """Where it needs something else, that is named; it is not a misspelling."""
    beside = next((words for start, words in BESIDE.items() if word.startswith(start)), [])
    said = find_refusal(*beside, word)
    assert not said or ("Give" in said and "Did you mean" not in said), said


def test_a_knob_that_does_not_exist_is_found_by_this_very_test():
    assert (
        not knob_exists("pair.noise")
        and not knob_exists("guards.warn_kl")
        and knob_exists("prompts.split.test")
    )
    assert KNOB.findall("look at pair.noise, or pair.filters.near_duplicate_threshold=0.9.") == [
        "pair.noise",
        "pair.filters.near_duplicate_threshold=0.9.",
    ]
