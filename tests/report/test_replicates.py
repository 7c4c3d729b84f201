"""Seeds as replicates: intervals against simulated seeds and prompts whose effect is known."""

import numpy as np
import pytest
from scipy import stats

from pipeline.report.analysis.replicates import SeedSpread, estimate_spread, note_single_seed
from pipeline.report.analysis.statistics import BootstrapConfig, Estimate, estimate_difference

EFFECT, PROMPTS = 0.3, 100


def by_prompt(values) -> dict[str, float]:
    return {str(place): float(value) for place, value in enumerate(values)}


def spread_of(table: np.ndarray, draw: int = 0) -> tuple[SeedSpread, Estimate]:
    """The intervals of both and of prompts: a row of gains for each seed."""
    bootstrap = BootstrapConfig(0.95, 199, draw)
    found = estimate_difference(
        by_prompt(table.mean(axis=0)), by_prompt(0 * table[0]), table.shape[1], bootstrap
    )
    gaps = [by_prompt(row) for row in table]
    return estimate_spread(gaps, found.estimate, found.p_value, 0.95), found.estimate


def simulate_gains(rng, seeds: int, of_seed: float, of_prompt: float, rest: float) -> np.ndarray:
    """SFT's own luck is in the effect of a prompt, which is thus no smaller than the rest."""
    return (
        EFFECT
        + rng.normal(0, of_seed, (seeds, 1))
        + rng.normal(0, of_prompt, (1, PROMPTS))
        + rng.normal(0, rest, (seeds, PROMPTS))
    )


def covers(interval: Estimate, truth: float = EFFECT) -> bool:
    return interval.low <= truth <= interval.high


# What a seed, a prompt and the rest add. Coverage of 1,500 sets of 3 seeds, in %, by
# what we take · between prompts alone · between seeds alone; then what we take for 10 seeds.
WORLDS = {
    # 96.3 · 95.9 · 75.7; 95.3
    "seeds do nothing": (0.0, 1.0, 0.7),
    # 96.5 · 94.8 · 82.3; 95.0
    "seeds do little": (0.06, 1.0, 0.7),
    # 95.7 · 86.8 · 90.9; 94.9
    "seeds do as much as prompts": (0.17, 1.0, 0.7),
    # 94.1 · 53.3 · 93.6; 94.5
    "seeds do most": (0.5, 1.0, 0.7),
}


@pytest.fixture(scope="module")
def simulated() -> dict[str, list[tuple[SeedSpread, Estimate]]]:
    """500 sets of 3 seeds, a quarter of them in each world."""
    rng = np.random.default_rng(0)
    return {
        world: [spread_of(simulate_gains(rng, 3, *sizes), draw) for draw in range(125)]
        for world, sizes in WORLDS.items()
    }


def test_the_interval_of_three_seeds_covers_a_known_effect(simulated):
    found = [[covers(spread.both) for spread, _ in sets] for sets in simulated.values()]
    assert 0.93 <= np.mean(found) <= 0.97
    assert np.mean(found, axis=1).min() >= 0.9


def test_neither_interval_alone_covers_it(simulated):
    assert np.mean([covers(prompts) for _, prompts in simulated["seeds do most"]]) < 0.65
    assert np.mean([covers(spread.seeds) for spread, _ in simulated["seeds do nothing"]]) < 0.85


def quick_spread(table: np.ndarray) -> SeedSpread:
    """With Student's t between prompts, which needs no bootstrap."""
    means = table.mean(axis=0)
    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    prompts = Estimate(means.mean(), low, high, len(means))
    gaps = [by_prompt(row) for row in table]
    return estimate_spread(gaps, prompts, stats.ttest_1samp(means, 0).pvalue, 0.95)


def test_between_seeds_covers_the_mean_of_all_seeds_on_these_very_prompts():
    rng, found = np.random.default_rng(1), []
    worth = rng.normal(EFFECT, 1, (1, PROMPTS))
    for _ in range(500):
        chance = rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.7, (3, PROMPTS))
        found.append(covers(quick_spread(worth + chance).seeds, worth.mean()))
    assert 0.93 <= np.mean(found) <= 0.97


def test_no_effect_is_found_in_one_set_of_twenty():
    rng = np.random.default_rng(2)
    sets = (simulate_gains(rng, 3, 0.17, 1.0, 0.7) - EFFECT for _ in range(500))
    assert 0.03 <= np.mean([quick_spread(table).p_value <= 0.05 for table in sets]) <= 0.07


def test_the_seeds_interval_is_student_s_t_of_their_means():
    table = np.array([[0.1, 0.5, 0.0, 0.2], [0.3, 0.2, 0.1, 0.6], [0.2, 0.9, 0.4, 0.1]])
    spread, prompts = spread_of(table)
    means = table.mean(axis=1)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (spread.seeds.low, spread.seeds.high) == pytest.approx((low, high))
    assert spread.seeds.mean == spread.both.mean == prompts.mean == pytest.approx(0.3)
    assert spread.both.low <= min(low, prompts.low) and spread.both.high >= max(high, prompts.high)
    assert spread.p_value >= stats.ttest_1samp(means, 0).pvalue


def test_ten_seeds_get_the_two_way_interval():
    """There the one-way intervals are narrower than both together."""
    rng = np.random.default_rng(3)
    table = simulate_gains(rng, 10, 0.15, 1.0, 0.7)
    spread, prompts = spread_of(table)
    [of_seeds, of_prompts] = (
        table.mean(axis=axis).var(ddof=1) / n for axis, n in ((1, 10), (0, 100))
    )
    reach = (spread.both.high - spread.both.low) / 2
    assert reach > max(spread.seeds.high - spread.seeds.low, prompts.high - prompts.low) / 2
    assert 1.96 * (of_seeds + of_prompts) ** 0.5 == pytest.approx(reach, rel=0.1)


def test_equal_seeds_leave_the_interval_between_prompts():
    row = np.random.default_rng(4).normal(0.3, 1, PROMPTS)
    spread, prompts = spread_of(np.array([row] * 3))
    assert (spread.both.low, spread.both.high) == pytest.approx((prompts.low, prompts.high))
    assert spread.seeds.low == spread.seeds.high == pytest.approx(row.mean())


def test_one_prompt_has_no_interval_and_no_common_prompt_no_mean():
    one, _ = spread_of(np.array([[0.1], [0.2], [0.3]]))
    assert (one.both.mean, one.both.low, one.seeds.high) == (pytest.approx(0.2), None, None)
    gaps = [by_prompt([0.1]), {"other": 0.2}]
    none = estimate_spread(gaps, Estimate(None, None, None, 0), None, 0.95)
    assert none == SeedSpread(Estimate(None, None, None, 0), Estimate(None, None, None, 2), None)


def test_seeds_that_differ_alike_on_all_prompts_have_no_interval_between_prompts():
    spread, prompts = spread_of(np.array([[0.1] * 50, [0.2] * 50, [0.3] * 50]))
    assert prompts.low == prompts.high and spread.both.low < 0 < spread.both.high
    flat, _ = spread_of(np.full((3, 50), 0.2))
    assert flat.both.low == flat.both.high == pytest.approx(0.2) and flat.p_value <= 0.05


def test_a_verdict_on_a_model_of_one_seed_says_so():
    rows = [{"model": "round-1", "between": {}}, {"model": "merge-50"}]
    verdict = {"why": "It gains."}
    noted = note_single_seed(verdict, "merge-50", rows)["why"]
    assert noted.startswith("It gains. merge-50 is of one seed")
    for chosen, seen in (("round-1", rows), ("sft", rows), ("merge-50", rows[1:])):
        assert note_single_seed(verdict, chosen, seen) == verdict
