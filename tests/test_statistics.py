"""Intervals and tests against simulated exams whose truth is known; the first seed is 0."""

import numpy as np
import pytest

from pipeline.report.statistics import Sampling, contest, difference, holm, length_adjusted, sign_flip, sign_test

LEVEL = 0.05


def exams(rng, gain: float, prompts: int = 80, samples: int = 1):
    """Two models' means by prompt: prompts differ much, samples of one prompt are alike, scores may tie."""
    hardness = rng.normal(0, 1, (prompts, 1))
    taste = rng.normal(0, 0.4, (2, prompts, 1))  # what a model makes of a prompt, whatever it draws
    drawn = hardness + taste + rng.normal(0, 0.6, (2, prompts, samples))
    drawn[0] += gain
    means = drawn.round(1).mean(axis=2)
    return [dict(zip(map(str, range(prompts)), model.tolist(), strict=True)) for model in means]


def coverage(sets: int, samples: int, seed: int = 0) -> float:
    rng, held = np.random.default_rng(seed), 0
    for draw in range(sets):
        found = difference(*exams(rng, 0.2, samples=samples), 80, Sampling(0.95, 499, draw)).estimate
        held += found.low <= 0.2 <= found.high
    return held / sets


def false_positives(sets: int, seed: int = 0) -> dict[str, float]:
    """How often two draws of one model are told apart: by the interval, the two tests, and any of a family of three."""
    rng = np.random.default_rng(seed)
    found = dict.fromkeys(("interval", "sign flip", "sign test", "holm"), 0)
    for draw in range(sets):
        a, b = exams(rng, 0.0, samples=2)
        gap, met = difference(a, b, 80, Sampling(0.95, 499, draw)), contest(a, b, 80, Sampling(0.95, 9, draw))
        more = [sign_flip(rng.normal(0, 1, 80).tolist(), Sampling(0.95, 499, draw)) for _ in range(2)]
        found["interval"] += not gap.estimate.low <= 0 <= gap.estimate.high
        found["sign flip"] += gap.p_value < LEVEL
        found["sign test"] += met.p_value < LEVEL
        found["holm"] += min(holm([gap.p_value, *more])) < LEVEL
    return {name: count / sets for name, count in found.items()}


def test_intervals_hold_the_truth_when_a_prompt_has_several_samples():
    """As many prompts' worth of samples taken for prompts would hold it in less than eight cases of ten."""
    assert 0.92 <= coverage(300, samples=4) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4])
def test_intervals_hold_the_truth_in_95_cases_of_100(samples):
    assert 0.93 <= coverage(2000, samples) <= 0.97


@pytest.mark.slow
def test_a_model_is_rarely_told_apart_from_itself():
    assert max((found := false_positives(4000)).values()) <= 0.065, found


def test_signs_are_as_good_as_every_sign_where_all_can_be_tried():
    gaps = [0.5, 1.5, -0.2, 2.0, 0.9, 0.4, -0.1, 1.1]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = (np.abs(signs @ gaps) >= abs(sum(gaps)) - 1e-9).mean()
    assert sign_flip(gaps, Sampling(0.95, 99_999, 0)) == pytest.approx(exact, abs=0.002)
    assert sign_flip([-gap for gap in gaps], Sampling(0.95, 999, 0)) == sign_flip(gaps, Sampling(0.95, 999, 0))


def test_ties_are_no_evidence_for_a_difference():
    few = Sampling(0.95, 999, 0)
    assert sign_flip([0.0] * 40, few) == 1.0 and sign_flip([], few) is None
    assert sign_flip([0.3, -0.1, 0.2] + [0.0] * 90, few) == sign_flip([0.3, -0.1, 0.2], few)


def test_a_true_difference_is_found():
    a, b = exams(np.random.default_rng(0), 0.5)
    found = difference(a, b, 80, Sampling(0.95, 999, 0))
    assert found.p_value == 1 / 1000
    assert found.better + found.same + found.worse == pytest.approx(1) and found.better > 2 * found.worse


def test_holm_knows_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([None]) == [None] and holm([]) == []


def test_the_same_tests_corrected_together_are_stricter_than_one():
    wins = sign_test(30, 14)
    assert wins < LEVEL < min(holm([wins] * 3))


def judged(win, seed: int = 0, judges: int = 20) -> tuple[float, float]:
    """The mean plain and the mean length-adjusted rate over judges of 500 prompts; a's answers are 30 tokens longer."""
    rng, plain, adjusted = np.random.default_rng(seed), [], []
    for _ in range(judges):
        gaps = rng.normal(30, 40, 500).round()
        points = (rng.random(500) < win(gaps)).astype(float)
        won, longer = (dict(zip(map(str, range(500)), each.tolist(), strict=True)) for each in (points, gaps))
        plain.append(points.mean())
        adjusted.append(length_adjusted(won, longer))
    return float(np.mean(plain)), float(np.mean(adjusted))


@pytest.mark.parametrize("steep", [1 / 25, 1 / 10])
def test_a_judge_that_rewards_length_alone_is_adjusted_to_a_half(steep):
    plain, adjusted = judged(lambda gaps: 1 / (1 + np.exp(-gaps * steep)))
    assert adjusted == pytest.approx(0.5, abs=0.03)
    assert plain > 0.65


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.65, 0.8])
def test_a_judge_that_ignores_length_is_left_as_it_is(rate):
    plain, adjusted = judged(lambda gaps: np.full(len(gaps), rate))
    assert adjusted == pytest.approx(plain, abs=0.02)
