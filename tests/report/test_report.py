"""The statistics against a known truth, the sentences of the verdict, and the page as a file."""

import json
import re
import zlib
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from pipeline.report import formatting
from pipeline.report.analysis import aggregate, changes
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    count_wins,
    estimate_difference,
    estimate_mean,
    sign_test,
)
from pipeline.report.analysis.text_metrics import measure_repetition
from pipeline.report.analysis.verdict import VerdictBasis, reach_verdict
from pipeline.report.formatting import (
    format_duration,
    format_number,
    format_p_value,
    format_share,
    format_signed,
)
from pipeline.report.render import svg
from pipeline.report.render.environment import ENVIRONMENT, HERE, render_document
from pipeline.report.render.examples import choose_examples
from pipeline.report.render.figures.process import draw_cost, draw_strength
from pipeline.report.render.markdown import render_markdown
from pipeline.report.render.page import render_page
from pipeline.report.render.table import Cell, ReportTable, find_text_columns
from pipeline.report.render.tables import build_tables, contests
from pipeline.report.render.tables import models as model_sheets
from pipeline.report.render.tables.origins import build_cost

FEW = BootstrapConfig(level=0.95, resamples=999, seed=0)


# ── statistics ────────────────────────────────────────────────────────────────


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for draw in range(400):
        known = estimate_mean(rng.normal(0.3, 1, 100).tolist(), BootstrapConfig(0.95, 499, draw))
        held += known.low <= 0.3 <= known.high
    assert 0.92 <= held / 400 <= 0.98


def test_a_lower_level_gives_a_narrower_interval():
    values = np.random.default_rng(0).random(80).tolist()
    wide, narrow = (estimate_mean(values, BootstrapConfig(level, 999, 0)) for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


@pytest.mark.parametrize("values", [[0.0] * 9, [0.7] * 300, [1 / 3, (0.1 + 0.2) / 0.9, 0.3 / 0.9]])
def test_equal_values_give_an_interval_of_one_point(values):
    known = estimate_mean(values, FEW)
    assert known.low == known.mean == known.high == pytest.approx(values[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1 / 3, 0.5, 1.0, 1e6]), min_size=2, max_size=12))
def test_an_interval_is_finite_and_holds_its_mean_whatever_the_data(values):
    known = estimate_mean(values, BootstrapConfig(0.95, 99, 0))
    assert min(values) - 1e-9 <= known.low <= known.high <= max(values) + 1e-9


def test_no_prompt_has_no_mean_and_one_has_no_interval():
    assert (estimate_mean([], FEW).mean, estimate_mean([], FEW).low) == (None, None)
    assert (estimate_mean([0.4], FEW).mean, estimate_mean([0.4], FEW).low) == (0.4, None)


def test_differences_join_by_prompt_and_count_what_is_missing():
    a = {"p3": 0.9, "p1": 0.5, "p2": 0.7, "only-a": 1.0}
    b = {"p1": 0.4, "p2": 0.6, "p3": 0.8, "only-b": 0.0}
    found = estimate_difference(a, b, expected=6, bootstrap=FEW)
    assert found.estimate.mean == pytest.approx(0.1)
    assert (found.estimate.n, found.missing) == (3, 3)


def test_pairing_sees_what_the_spread_between_prompts_hides():
    rng = np.random.default_rng(1)
    b = {str(i): value for i, value in enumerate(rng.normal(0, 5, 200))}
    a = {
        key: value + 0.2 + noise
        for (key, value), noise in zip(b.items(), rng.normal(0, 0.1, 200), strict=True)
    }
    found = estimate_difference(a, b, 200, FEW)
    assert 0.17 < found.estimate.low < 0.2 < found.estimate.high < 0.23


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_detectable_difference_is_detected_in_four_cases_of_five(level):
    rng = np.random.default_rng(2)
    pilot = rng.normal(0, 1, 60)
    pilot /= pilot.std(ddof=1)
    zero = dict.fromkeys(map(str, range(60)), 0.0)
    smallest = estimate_difference(
        dict(zip(zero, pilot.tolist(), strict=True)), zero, 60, replace(FEW, level=level)
    ).detectable
    found = [
        estimate_mean(rng.normal(smallest, 1, 60).tolist(), BootstrapConfig(level, 499, i)).low > 0
        for i in range(400)
    ]
    assert 0.74 <= sum(found) / 400 <= 0.88


def test_ties_are_half_a_win_and_no_evidence():
    a = {"p1": 1.0, "p2": 1.0, "p3": 0.1 + 0.2, "p4": 0.0}
    b = {"p1": 0.0, "p2": 0.0, "p3": 0.3, "p4": 1.0}
    found = count_wins(a, b, 4, FEW)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.rate.mean == pytest.approx((2 + 0.5) / 4)
    assert found.p_value == pytest.approx(sign_test(2, 1))
    assert found.verdicts == {"p1": "a", "p2": "a", "p3": "tie", "p4": "b"}


def test_swapping_the_sides_of_a_contest_swaps_its_result():
    rng = np.random.default_rng(3)
    a, b = ({str(i): float(v) for i, v in enumerate(rng.integers(0, 3, 90))} for _ in range(2))
    one, other = count_wins(a, b, 90, FEW), count_wins(b, a, 90, FEW)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.rate.mean == pytest.approx(1 - other.rate.mean)
    assert one.p_value == other.p_value


def test_the_sign_test_knows_the_textbook():
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(0, 0) == 1.0


def test_repetition_counts_trigrams_used_before():
    assert measure_repetition("one two three four five") == 0
    assert measure_repetition("a b c a b c") == pytest.approx(1 / 4)
    assert measure_repetition("go go go go go go") == pytest.approx(3 / 4)
    assert measure_repetition("好好好好好") == pytest.approx(2 / 3)
    assert measure_repetition("") == measure_repetition("two words") == 0


# ── the verdict ───────────────────────────────────────────────────────────────


def judge(low, high, n=300, kl=1.5, chosen="round-1", prompts=300, split="test"):
    mean = (low + high) / 2
    gap = {
        "model": "round-1",
        "scorer": "rules",
        "mean": mean,
        "low": low,
        "high": high,
        "n": n,
        "detectable": 0.05,
    }
    models = [
        {"name": name, "metrics": {"rules": {"mean": score, "n": n}}, "kl": {"mean": kl}}
        for name, score in (("sft", 0.5), ("round-1", 0.5 + mean))
    ]
    return reach_verdict(
        VerdictBasis(split, prompts, "rules", 0.95, chosen, training="rules"), models, [gap]
    )


def test_the_verdict_follows_the_interval():
    assert judge(0.01, 0.09)["better"] == "yes"
    assert judge(-0.09, -0.01)["better"] == "no"
    assert judge(-0.01, 0.09)["better"] == "unclear"
    assert judge(0.0, 0.09)["better"] == "unclear"


def test_a_yes_says_by_how_much_and_on_what():
    why = judge(0.06, 0.14)["why"]
    assert why == (
        "On 300 test prompts round-1 scores 0.600 against sft's 0.500 by rules: "
        "a difference of +0.100, 95 % interval +0.060 to +0.140."
    )


def judge_with_reward(rules: float, reward: float, n: int = 300) -> dict:
    """By rules, where reward made the pairs: intervals around these means, and of one criterion."""
    marks = {"rules": {"mean": 0.5, "n": 300}}
    models = [{"name": name, "metrics": marks, "kl": {"mean": 9.0}} for name in ("sft", "round-1")]
    told = {"rules": rules, "reward": reward, "reward/open": -9.0}
    gaps = [
        {
            "model": "round-1",
            "scorer": name,
            "mean": mean,
            "low": mean - 0.04,
            "high": mean + 0.04,
            "n": 300,
        }
        for name, mean in told.items()
    ]
    gaps[1]["n"] = n
    return reach_verdict(
        VerdictBasis("test", 300, "rules", 0.95, "round-1", training="reward"),
        models,
        [{**gap, "detectable": 0.1} for gap in gaps],
    )


@pytest.mark.parametrize(("rules", "better"), [(0.0, "unclear"), (-0.1, "no")])
def test_a_reward_that_rose_alone_is_said_in_place_of_further_training(rules, better):
    found = judge_with_reward(rules, reward=0.5)
    assert found["better"] == better
    assert (
        "By reward it rose by +0.500, +0.460 to +0.540: it learned to please reward" in found["why"]
    )
    assert "train further" not in found["why"]
    assert (
        "reward" not in judge_with_reward(rules, reward=0.0)["why"]
        and "reward" not in judge_with_reward(rules, 0.5, n=9)["why"]
    )


def test_a_yes_that_another_scorer_does_not_share_says_so():
    assert judge_with_reward(0.1, reward=0.02)["better"] == "yes"
    assert (
        "By reward it is not clearly better: +0.020, −0.020 to +0.060."
        in judge_with_reward(0.1, reward=0.02)["why"]
    )
    assert "reward" not in judge_with_reward(0.1, reward=0.1)["why"]


def test_fewer_than_thirty_prompts_are_unclear_however_large_the_difference():
    few = judge(0.3, 0.5, n=29, prompts=29, split="dev")
    assert few["better"] == "unclear"
    assert "29 dev prompts are too few" in few["why"]
    assert "prompts.split.dev" in few["why"]
    assert judge(0.3, 0.5, n=30)["better"] == "yes"


def test_few_scores_of_many_prompts_do_not_ask_for_more_prompts():
    assert "prompts.split" not in judge(0.3, 0.5, n=12, prompts=300)["why"]


@pytest.mark.parametrize(
    ("low", "high", "kl", "knob"),
    [
        (-0.09, -0.01, 9.0, "train.beta"),
        (-0.09, -0.01, 1.0, "pair.filters.min_margin"),
        (-0.09, -0.01, None, "pair.filters.min_margin"),
        (-0.01, 0.02, 0.01, "train.epochs"),
        (-0.01, 0.02, 1.0, "prompts.split.test"),
        (-0.01, 0.02, None, "prompts.split.test"),
    ],
)
def test_what_is_not_better_names_the_next_knob(low, high, kl, knob):
    assert knob in judge(low, high, kl=kl)["why"]


@pytest.mark.parametrize("kl", [0.0, None])
def test_unchanged_weights_and_equal_scores_say_no_figure_that_is_not_known(kl):
    gap = {
        "model": "round-1",
        "scorer": "rules",
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 300,
        "detectable": None,
    }
    rows = {
        name: {"name": name, "metrics": {"rules": {"mean": 0.5, "n": 300}}, "kl": {"mean": kl}}
        for name in ("sft", "round-1")
    }
    question = VerdictBasis("test", 300, "rules", 0.95, "round-1")
    equal = reach_verdict(question, [*rows.values()], [gap])["why"]
    assert "0.000:" not in equal and "can detect" not in equal
    told = reach_verdict(replace(question, unchanged=True), [*rows.values()], [gap])
    assert (
        told["better"] == "unclear"
        and "can detect" not in told["why"]
        and "prompts.split" not in told["why"]
    )
    assert (
        "no step changed them" in told["why"]
        and "train.batch" in told["why"]
        and "train.epochs" in told["why"]
    )


def test_without_a_spread_no_detectable_difference_is_known():
    same = {str(at): at / 10 for at in range(10)}
    assert estimate_difference(same, same, 10, FEW).detectable is None
    report = a_report()
    report["differences"] = [{**row, "detectable": None} for row in report["differences"]]
    assert "every prompt's difference is the same" in model_sheets._write_note(report)
    assert "can detect a difference" not in model_sheets._write_note(report)


def test_a_chosen_model_that_is_sft_or_was_not_examined():
    assert judge(0.01, 0.09, chosen="sft")["better"] == "no"
    for kl, knob in (
        (6.0, "lower train.learning_rate"),
        (0.01, "raise train.learning_rate"),
        (1.0, "min_margin"),
    ):
        assert knob in judge(-0.05, 0.03, kl=kl, chosen="sft")["why"], (
            "it says what to turn so that a round is chosen"
        )
    assert judge(0.01, 0.09, chosen=None)["better"] == "unclear"
    assert judge(0.01, 0.09, chosen="round-7")["better"] == "unclear"


# ── words and shapes ──────────────────────────────────────────────────────────


def test_numbers_are_written_for_people():
    values = (0.12345, -0.5, 12.345, None, -0.0001)
    assert [*map(format_number, values)] == ["0.123", "−0.500", "12.3", "–", "−0.0001"]
    assert (format_signed(0.1), format_signed(-0.1), format_signed(0.0), format_signed(-1e-12)) == (
        "+0.100",
        "−0.100",
        "0.000",
        "0.000",
    )
    assert (format_share(0.645), format_p_value(0.0002), format_p_value(0.25)) == (
        "64.5 %",
        "< 0.001",
        "0.250",
    )
    assert (format_duration(3.21), format_duration(225), format_duration(7261)) == (
        "3.2 s",
        "3 min 45 s",
        "2 h 01 min",
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=6), st.booleans())
def test_every_value_lies_on_its_scale_and_every_tick_too(values, tight):
    on = formatting.fit_scale(values, 50, 400, tight=tight)
    assert all(49.9 <= on(value) <= 400.1 for value in [*values, *on.ticks])
    assert len(on.ticks) <= 12


def test_a_scale_may_run_upwards():
    up = formatting.fit_scale([0, 1], 200, 10)
    assert up(1) < up(0)


# ── the page ──────────────────────────────────────────────────────────────────


def a_report(name="round-1"):
    mark = {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 40, "failed": 0}
    estimate = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 40, "why": None}
    model = {
        "fingerprint": "f",
        "metrics": {"rules": mark, "rules/open": mark},
        "tokens": estimate,
        "truncated": 0.0,
    }
    begun = {"text": "the <u> river", "share": 0.5}
    model |= {
        "distinct": {"2": 0.9},
        "refusals": 0.0,
        "markdown": 0.1,
        "opening": begun,
        "reasoning": estimate,
    }
    model |= {"other_language": {"share": None, "n": 0}}
    gap = {
        "scorer": "rules",
        "against": "sft",
        "mean": 0.1,
        "low": 0.05,
        "high": 0.15,
        "n": 40,
        "missing": 0,
    }
    gap |= {"p_value": 0.01, "p_holm": 0.02, "better": 0.5, "same": 0.3, "worse": 0.2}
    duel = {
        "judge": "rules",
        "wins": 20,
        "ties": 15,
        "losses": 5,
        "win_rate": 0.7,
        "low": 0.6,
        "high": 0.8,
    }
    asked = {"judge": "prompted judge", "flip_rate": 0.125}
    more = {"length_adjusted": None, "length_adjusted_low": None, "length_adjusted_high": None}
    more |= {"flip_rate": None, "failed": 0, "p_value": 0.01, "p_holm": 0.02}
    curve = [
        {"step": i, "loss": 0.7 - i / 100, "margin": i / 10, "accuracy": 0.5} for i in range(1, 9)
    ]
    trained = {
        "round": "round-1",
        "fingerprint": "f",
        "steps": 8,
        "loss": 0.6,
        "margin": 0.8,
        "accuracy": 0.5,
    }
    return {
        "evaluation": {
            "split": "test",
            "prompts": 40,
            "scorer": "rules",
            "level": 0.95,
            "chosen": name,
        }
        | {"training": "rules", "gold": []},
        "setup": {
            "model": "./my-<sft>",
            "prompts": "prompts.jsonl",
            "objective": "dpo (sigmoid), LoRA",
            "beta": 0.1,
            "learning_rate": 5e-6,
            "rounds": 2,
            "command": "strop run sft.model='./my-<sft>' rounds=2",
        },
        "verdict": {"better": "yes", "why": "Because <it> is 95 % so."},
        "models": [{"name": n, **model, "repetition": 0.01, "kl": estimate} for n in ("sft", name)],
        "differences": [{"model": name, **gap, "detectable": 0.05}],
        "duels": [
            {"a": name, "b": "sft", **duel, **more},
            {"a": name, "b": "sft", **duel, **more, **asked},
        ],
        "changes": [change("tokens", -2.0, 0.001), change("refusals", 0.004, 0.5)],
        "distributions": [
            {"what": "score", "edges": [0.0, 0.5, 1.0], "prompts": {"sft": [30, 10], name: [0, 40]}}
        ],
        "benchmarks": [],
        "annotators": [],
        "chats": {},
        "retention": [],
        "expected": [],
        "gates": [],
        "funnel": {
            "prompts": {
                "in": 140,
                "dropped": {"near duplicate": 7},
                "out": {"train": 93, "dev": 0, "test": 40},
            },
            "samples": [
                draw(label=1),
                draw(label=1, wave=1, failed={"HTTP 500": 2}),
                draw(label="test round-1"),
            ],
            "pairs": [
                {
                    "round": 1,
                    "samples_in": 90,
                    "prompts_in": 45,
                    "dropped_samples": {"tie": 5},
                    "pairs": 40,
                    "margin": {"q25": 1},
                    "ties": {"prompts": 9, "all_easy": 6, "all_hard": 3},
                }
            ],
        },
        "training": [{**trained, "curve": curve, "dev": curve[::3]}],
        "cost": [
            {
                "stage": "train",
                "seconds": 9.0,
                "phases": {"start": 0.5, "load": 2.0, "work": 6.0, "write": 1.0, "wait": 0.0},
                "models_opened": 1,
                "tokens": 900,
                "tokens_per_second": 100.0,
                "money": None,
                "steps": [{}],
            }
        ],
        "missing": [],
        "slices": [],
        "control": None,
        "proxy": None,
        "ceiling": None,
    }


def change(habit, mean, p_holm):
    return {
        "habit": habit,
        "mean": mean,
        "low": mean - 0.01,
        "high": mean + 0.01,
        "n": 40,
        "p_holm": p_holm,
    }


def draw(label, wave=0, failed=None):
    """As many tokens were thought as answered; the policy was trained on a quantised base."""
    lost = {
        "prompts": 20,
        "dropped": {"prompt_too_long": 3},
        "completions": 80,
        "failed": failed or {},
    }
    counts = {"truncated": 8, "stopped_by_string": 1, "tokens": 30.0, "reasoning_tokens": 15.0}
    return {
        "label": label,
        "wave": wave,
        "fingerprint": "f",
        **lost,
        **counts,
        "quantization_difference": 0.0123,
    }


def answers(*rows):
    columns = ("prompt_id", "model", "completion", "score", "finish_reason", "prompt")
    return pl.DataFrame(
        [dict(zip(columns, row, strict=True)) for row in rows],
        schema_overrides={"score": pl.Float64},
    )


TWO = answers(
    ("p1", "sft", "Tame.", 0.0, "stop", "What is <b>?"),
    ("p1", "round-1", "<script>alert('x')</script> & \"so\"", 1.0, "length", "What is <b>?"),
)


class Page(HTMLParser):
    """Every element with its attributes, and the text that a reader sees."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere():
    text = render_page(a_report(), TWO)
    found = Page(text)
    assert found.open == []  # every element is closed in its order
    assert not re.search(r"https?://|\bsrc=|url\(|@import|<link|<iframe|fetch|XMLHttpRequest", text)
    assert "default-src 'none'" in text and 'href="' not in text.replace('href="#', "")


def test_words_begin_at_the_left_edge_of_their_column_and_figures_end_at_the_right_one():
    found = Page(render_page(a_report(), TWO))
    sides = {
        a["data-label"]: a.get("class")
        for tag, a in found.elements
        if tag == "td" and "data-label" in a
    }
    assert sides["judge"] == "words"
    assert {
        sides[name]
        for name in ("win rate", "wins", "p", "flips", "length-adjusted", "tokens", "steps")
    } == {None}
    assert find_text_columns([("a", "6e-5", "−0.1", "< 0.001", "–", "4o-mini", "12 min 03 s")]) == [
        True, False, False, False, False, True, False
    ]  # fmt: skip
    text = render_markdown(a_report())
    assert "| contest | judge | win rate | wins |" in text and "| --- | --- | ---: | ---: |" in text
    assert "## How reliable is this result?\n\n- A/A control: " in text and "\n- Flips: " in text


def test_a_contest_that_was_lost_on_every_prompt_is_told_as_lost():
    report = a_report()
    lost = {"win_rate": 0.0, "low": 0.0, "high": 0.0, "wins": 0, "ties": 0, "losses": 40}
    report["duels"] = [{**report["duels"][1], **lost}]
    [change] = [each for each in changes.list_changes(report) if "judged by" in each.name]
    assert (change.changed, change.tone) == (True, "down")
    assert contests.build_duels(report).rows[0][2].tone == "down"


def test_a_scorer_whose_name_begins_like_the_primary_one_is_not_its_kind():
    models = [SimpleNamespace(scores=dict.fromkeys(("mathematics/x", "math/x", "math", "algebra")))]
    assert aggregate.list_scorers(models, "math") == ["math", "math/x", "algebra", "mathematics/x"]


def test_a_row_s_name_keeps_what_is_said_of_it():
    sheet = ReportTable(
        "Set", "", ("contest", "n"), [[Cell("round-1 against sft", "on mt_bench"), Cell("1")]]
    )
    table = ENVIRONMENT.get_template("macros.html").module.table
    assert "on mt_bench" in Page(table(sheet)).text


def test_a_template_escapes_all_but_drawings_and_misses_no_value():
    texts = [file.read_text() for file in (HERE / "templates").glob("*.html")]
    marked = [word for text in texts for word in re.findall(r"(\S+) \| safe", text)]
    assert marked == ["figure.drawing"] and not re.search("autoescape", "".join(texts))
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render_document("sweep.html")


def test_names_in_the_funnel_stay_inside_the_drawing():
    report = a_report()
    report["funnel"]["pairs"][0]["dropped_samples"] = {"repeats an earlier answer of its prompt": 5}
    text = render_page(report, TWO)
    assert (
        ">repeats an earlier an…</text>" in text
        and ">repeats an earlier answer of its prompt</td>" in text
    )


def test_answers_and_names_stay_text():
    text = render_page(a_report(name="<i>round"), TWO)
    assert "<i>" not in text
    text = render_page(a_report(), TWO)
    assert (
        len(re.findall("<script", text)) == 2 and "<script>alert" not in text
    )  # the packed answers, and our own
    seen = Page(text)
    assert "<script>alert('x')</script> & \"so\"" in seen.text
    assert "What is <b>?" in seen.text
    assert "Because <it> is 95\u00a0% so." in seen.text


def test_every_figure_is_drawn_and_its_numbers_stand_beside_it_as_text():
    found = Page(render_page(a_report(), TWO))
    figures = [tag for tag, _ in found.elements if tag == "figure"]
    drawn = [attributes["aria-label"] for tag, attributes in found.elements if tag == "svg"]
    assert len(figures) == len(drawn)
    assert set(drawn) == {
        "Score", "Score by criterion", "Score against KL", "Win, tie, loss",
        "Scores before and after", "Win rates", "Judge flips",
        "Training loss", "Reward margin", "Pairs of round 1", "Time by stage",
    }  # fmt: skip
    for text in (
        "0.500 to 0.700",
        "0.6900",
        "samples in",
        "tie",
        "900",
        "12.5 %",
        "60.0 % to 80.0 %",
        "0.5 to 1.0",
    ):
        assert text in found.text


def test_the_page_runs_its_own_script_alone():
    """The policy names the script by its hash, so a script within a text would not run."""
    text = render_page(a_report(), TWO)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_every_answer_and_both_orders_of_each_verdict_are_packed_into_the_page():
    columns = {
        "prompt_id": ["p1", "p1"],
        "a": "round-1",
        "b": "sft",
        "judge": ["rules", "prompted judge"],
    }
    said = {
        "verdict": ["a", "tie"],
        "orders": [[], ["a", "b"]],
        "score_a": [1.0, 0.5],
        "score_b": [0.0, 0.5],
    }
    text = render_page(a_report(), TWO, pl.DataFrame({**columns, **said}))
    (data,) = re.findall(r'id="packed">([^<]*)<', text)
    told = json.loads(zlib.decompress(b64decode(data)))
    assert [model["name"] for model in told["models"]] == ["sft", "round-1"]
    assert told["prompts"] == [
        {
            "prompt": "What is <b>?",
            "answers": [[["Tame.", 0.0, 0]], [["<script>alert('x')</script> & \"so\"", 1.0, 1]]],
            "verdicts": {"0": ["a", 1.0, []], "1": ["tie", 0.0, ["a", "b"]]},
        }
    ]


def test_the_figures_have_the_p_and_the_kl_of_the_tables():
    report = a_report()
    for duel in report["duels"]:
        duel |= {"p_value": 0.111, "p_holm": 0.222}
    report["models"][0]["kl"] = {"mean": -4e-8, "low": -4e-8, "high": 4e-8, "n": 40, "why": None}
    text = Page(render_page(report, TWO)).text
    assert "0.222" in text and "0.111" not in text
    assert "e-08" not in text


def test_a_training_that_a_guard_ended_says_so():
    report = a_report()
    row = report["training"][0]
    row |= {"planned": 18, "kept": 1, "stopped": "KL to the reference is 5 nats"}
    written = render_markdown(report).replace("\\", "")
    assert "8 (of 18 planned; published: step 1; KL to the reference is 5 nats)" in written
    assert "published: step" not in render_markdown(a_report())


def test_a_training_s_figures_are_of_the_weights_that_are_published():
    log = [{"step": step, "loss": 0.7 - step / 10} for step in (1, 2)]
    model = SimpleNamespace(name="round-1", fingerprint="f", training=log, summary={"kept": 1})
    [row] = aggregate.describe_training([model])
    assert row["loss"] == pytest.approx(0.6) and row["steps"] == 2 and len(row["curve"]) == 2


def test_a_curve_claims_no_start_that_a_later_round_does_not_have():
    assert "same model" not in Page(render_page(a_report(), TWO)).text


def test_a_share_of_flips_names_its_prompts():
    text = Page(render_page(a_report(), TWO)).text
    assert "12.5 % of the prompts with two different answers" in text
    assert "Of the prompts with two different answers, those whose verdict" in text


def test_the_card_says_what_changed_means():
    note = changes.write_note(a_report())
    assert note in render_markdown(a_report()).replace("\\", "")


def test_where_no_difference_shows_nothing_is_said_to_be_equal():
    report = a_report()
    report["duels"] = []
    for row in (*report["differences"], *report["changes"]):
        row |= {"p_holm": 0.2, "low": -0.05, "high": 0.05}
    for text in (Page(render_page(report, TWO)).text, render_markdown(report)):
        changed = text.partition(changes.CHANGED_TITLE)[2].partition(changes.UNCHANGED_TITLE)[0]
        assert changed.strip("\n# ") == "Nothing that these prompts show."


def test_what_changed_and_what_did_not_stand_apart():
    report = a_report()
    report["differences"][0] |= {"p_holm": 0.2, "low": -0.05}
    for text in (Page(render_page(report, TWO)).text, render_markdown(report).replace("\\", "")):
        changed, _, rest = text.partition("What changed")[2].partition(changes.UNCHANGED_TITLE)
        assert "Tokens per answer" in changed and "−2.0 (−2.0 to −2.0)" in changed
        assert "judged by prompted judge" in changed and "rules" not in changed
        assert (
            "Score by rules" in rest and "Refusals" in rest and "+0.4 points (−0.6 to +1.4)" in rest
        )


@pytest.mark.parametrize("better", ["yes", "no", "unclear"])
def test_a_verdict_that_is_no_yes_links_to_funnel_calibration_and_flips(better):
    report = a_report()
    report["verdict"]["better"] = better
    found = Page(render_page(report, TWO))
    links = [attributes["href"][1:] for tag, attributes in found.elements if tag == "a"]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert links == (
        [] if better == "yes" else ["figure-pairs-of-round-1", "reliability", "figure-judge-flips"]
    )
    assert set(links) <= set(ids) and len(ids) == len(set(ids))
    assert (
        "strop calibrate verdicts.jsonl scorer=" in found.text
        and "changed its verdict" in found.text
    )


def test_a_model_without_kl_says_why():
    report = a_report()
    report["models"][1]["kl"] = {
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "why": "sft's own answers",
    }
    assert "– sft's own answers" in Page(
        render_page(report, TWO)
    ).text and "(sft's own answers)" in render_markdown(report)


def test_no_drawing_leaves_its_frame_or_holds_what_is_no_number():
    text = render_page(a_report(), TWO)
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert drawings
    for drawing in drawings:
        assert not re.search(r"nan|inf|None", drawing)
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing).groups())
        xs = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', drawing)]
        ys = [float(y) for y in re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', drawing)]
        assert min(xs) >= 0
        assert max(xs) <= width
        assert min(ys) >= 0
        assert max(ys) <= height


def test_a_long_name_is_shortened_in_the_drawing_and_whole_in_its_table():
    name = "meta-llama/Llama-3.1-8B-Instruct"
    text = render_page(a_report(name=name), TWO)
    score = text[
        text.index('id="figure-score"') : text.index("</figure>", text.index('id="figure-score"'))
    ]
    assert "meta-llama/Llama-3.1-…</text>" in score and f"<td class=words>{name}</td>" in score
    starts = [float(x) for x in re.findall(r'class="whisker[^"]*" x1="([\d.]+)"', score)]
    assert min(starts) > 9 * svg.MAX_NAME_LENGTH


def test_what_got_lost_on_the_way_is_on_the_page_and_the_card():
    report = a_report()
    seen, written = Page(render_page(report, TWO)).text, render_markdown(report).replace("\\", "")
    for text in (
        "− near duplicate",
        "prompt_too_long 3",
        "HTTP 500 2",
        "round 1, wave 1",
        "10.0 %",
        "of which 15.0 reasoning",
        "test round-1: sampled on the dequantised base; mean |Δ log p| per token 0.0123 nats",
    ):
        assert text in seen and text in written


def test_a_run_without_waves_or_quantised_bases_says_nothing_of_them():
    report = a_report()
    report["funnel"]["samples"] = [
        {**draw(label=1), "quantization_difference": None, "reasoning_tokens": None}
    ]
    assert not re.search("wave|dequantised|of which", render_markdown(report))


def test_the_report_draws_how_much_better_chosen_answers_are():
    histogram = {"edges": [0.5, 0.75, 1.0], "pairs": [3, 1]}
    [figure] = draw_strength({"round": 2, "histograms": {"p_chosen": histogram}})
    assert figure.title == "Probabilities of round 2"
    assert [*figure.rows] == [("0.50 to 0.75", "3"), ("0.75 to 1.00", "1")]
    assert draw_strength({"round": 2}) == []  # of a run of an earlier version


def test_the_cost_shows_where_the_time_of_a_stage_went():
    report = a_report()
    [row] = build_cost(report).rows
    assert [cell.text for cell in row[4:10]] == [
        "0.5 s",
        "2.0 s",
        "6.0 s",
        "1.0 s",
        "0.0 s",
        "1",
    ]
    figure = draw_cost(report)
    bars = re.findall(r'<rect class="(\w+)" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', figure.drawing)
    assert [kind for kind, _ in bars] == ["c0", "c2", "flow", "loss"], (
        "no bar for what took no time"
    )
    widths = [float(width) for _, width in bars]
    assert widths[2] / sum(widths) == pytest.approx(6.0 / 9.5, abs=0.01)
    report["cost"][0] |= {"phases": None, "models_opened": None}
    assert draw_cost(report).drawing.count("<rect") == 1, "a step of an earlier version"


def test_what_judges_and_servers_were_paid_is_in_the_cost_table():
    report = a_report()
    assert "money" not in render_markdown(report)
    report["cost"][0]["money"] = 3.456
    assert (
        "| money |" in render_markdown(report)
        and "3.46 |" in render_markdown(report)
        and "3.46" in Page(render_page(report, TWO)).text
    )


def test_prompts_that_are_all_easy_or_all_hard_are_counted_for_every_round():
    report = a_report()
    report["funnel"]["samples"] = [draw(label=1)]  # also where nothing was drawn twice
    [easy_and_hard] = [
        sheet for sheet in build_tables(report) if sheet.columns[-2:] == ("all easy", "all hard")
    ]
    assert [cell.text for cell in easy_and_hard.rows[0]] == ["round 1", "45", "9", "6", "3"]
    assert easy_and_hard.rows[0][2].detail == "20.0 %"
    assert easy_and_hard.title in Page(
        render_page(report, TWO)
    ).text and f"## {easy_and_hard.title}" in render_markdown(report)
    report["funnel"]["pairs"][0]["prompts_in"] = 0  # of offline pairs alone nothing was drawn
    assert easy_and_hard.title not in render_markdown(report)


def test_gains_come_first_then_losses_then_what_stayed():
    rows = []
    for index, (before, after) in enumerate(
        [(0.5, 0.5), (0.0, 1.0), (1.0, 0.2), (0.5, 0.7), (0.0, None)]
    ):
        rows += [
            (f"p{index}", "sft", "x", before, "stop", "?"),
            (f"p{index}", "round-1", "y", after, "stop", "?"),
        ]
    found = choose_examples(answers(*rows), "round-1")
    gaps = {title: [round(each.gap, 6) for each in group] for title, group in found.items()}
    assert gaps == {"Gained most": [1.0, 0.2], "Lost most": [-0.8], "Unchanged": [0.0]}


def test_the_card_is_a_table_that_no_name_can_break():
    report = a_report(name="a|b*")
    text = render_markdown(report)
    row = next(line for line in text.splitlines() if line.startswith("| a\\|b\\*"))
    heads = next(line for line in text.splitlines() if line.startswith("| model"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", heads))
    assert "Because \\<it> is 95 % so." in text
