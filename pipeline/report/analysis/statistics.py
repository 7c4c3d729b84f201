"""Means, paired differences and contests with their intervals.

The unit is the prompt: every function takes one number per prompt, as `{prompt_id: value}`.
Two models are joined by prompt id, never by position.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import expit, stdtrit
from scipy.stats import binomtest

# Two means of the same scores summed in another order differ in the last digits: that is a tie.
TIE = 1e-9
MAX_CELLS = 1_000_000  # of a matrix of resamples
# Of the variance: a resample that missed the rare large values would divide by next to nothing.
VARIANCE_FLOOR = 0.1
MIN_FIT_PROMPTS = 10  # for each covariate; fewer do not determine its curve
RIDGE = 0.01  # keeps the curve finite where one side won every prompt
MAX_NEWTON_STEPS = 100  # ten are usual

ByPrompt = Mapping[str, float]


def count_errors_to_detect(level: float) -> float:
    """Standard errors at which a true difference is distinguished from 0 in 80 % of samples.

    z((1 + level) / 2) + z(0.8): 1.96 + 0.84 at a level of 0.95.
    """
    normal = NormalDist()
    return normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(0.8)


@dataclass(frozen=True)
class BootstrapConfig:
    """How intervals are resampled."""

    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts. No prompts give no mean; one prompt gives no interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Between two models on the same prompts; `better`, `same` and `worse` are shares of them."""

    estimate: Estimate
    missing: int
    detectable: float | None
    p_value: float | None
    better: float | None
    same: float | None
    worse: float | None


@dataclass(frozen=True)
class Contest:
    wins: int
    ties: int
    losses: int
    missing: int
    rate: Estimate
    p_value: float | None
    verdicts: dict[str, str]


def estimate_mean(values: Sequence[float], bootstrap: BootstrapConfig) -> Estimate:
    """The mean with its interval; equal values give an interval of one point."""
    data = np.asarray(values, dtype=float)
    n = len(data)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = float(data.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    if np.ptp(data) <= TIE:
        return Estimate(mean, mean, mean, n)
    return Estimate(mean, *_compute_interval(data, bootstrap), n)


def _compute_interval(data: np.ndarray, bootstrap: BootstrapConfig) -> tuple[float, float]:
    """At each end the farther of Student's t and the bootstrap-t, but never outside the data.

    Student's t holds where differences are heavy-tailed or mostly zero, the bootstrap-t where
    values are skewed. Each fails where the other holds, and BCa fails in both:
    tests/report/test_statistics.py has the simulation.
    """
    n, mean = len(data), float(data.mean())
    error = float(data.std(ddof=1)) / n**0.5
    tail = (1 - bootstrap.level) / 2
    student = float(stdtrit(n - 1, 1 - tail))
    below, above = np.quantile(_bootstrap_t(data - mean, bootstrap), [tail, 1 - tail])
    low, high = mean - error * max(student, above), mean + error * max(student, -below)
    return max(float(low), float(data.min())), min(float(high), float(data.max()))


def _bootstrap_t(centred: np.ndarray, bootstrap: BootstrapConfig) -> np.ndarray:
    """Each resample's mean, in its own standard errors, above the sample's mean of 0."""
    n, rng = len(centred), np.random.default_rng(bootstrap.seed)
    scaled = centred / centred.std()
    t_values = np.empty(bootstrap.resamples)
    rows = max(1, MAX_CELLS // n)
    for start in range(0, bootstrap.resamples, rows):
        shape = min(rows, bootstrap.resamples - start), n
        resampled = scaled[rng.integers(0, n, shape, dtype=np.int32)]
        means = resampled.mean(axis=1)
        squares = np.einsum("ij,ij->i", resampled, resampled) / n
        variances = np.maximum(squares - means**2, VARIANCE_FLOOR)
        t_values[start : start + rows] = means * np.sqrt((n - 1) / variances)
    return t_values


def estimate_difference(
    a: ByPrompt, b: ByPrompt, expected: int, bootstrap: BootstrapConfig
) -> Difference:
    """a − b over their common prompts; `expected` is how many there would be had nothing failed.

    Where all differences are equal their spread is unknown, and so is what could be detected.
    """
    common = _common_prompts(a, b)
    gaps = [a[key] - b[key] for key in common]
    spreads = len(gaps) > 1 and np.ptp(gaps) > TIE
    errors = count_errors_to_detect(bootstrap.level)
    smallest = errors * float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5 if spreads else None
    sides = [_pick_winner(gap) for gap in gaps]
    shares = [sides.count(side) / len(sides) if sides else None for side in ("a", "tie", "b")]
    return Difference(
        estimate_mean(gaps, bootstrap),
        expected - len(common),
        smallest,
        sign_flip_test(gaps, bootstrap),
        *shares,
    )


def count_wins(
    a: ByPrompt,
    b: ByPrompt,
    expected: int,
    bootstrap: BootstrapConfig,
    weights: ByPrompt | None = None,
) -> Contest:
    """Who has the higher mean on each common prompt.

    A tie is half a win in the rate; the sign test uses decisive prompts only. `weights`: as how
    many prompts each one counts in the rate.
    """
    verdicts = {key: _pick_winner(a[key] - b[key]) for key in _common_prompts(a, b)}
    wins, ties, losses = (sum(v == side for v in verdicts.values()) for side in ("a", "tie", "b"))
    points = [{"a": 1.0, "tie": 0.5, "b": 0.0}[verdict] for verdict in verdicts.values()]
    if weights is None:
        rate = estimate_mean(points, bootstrap)
    else:
        rate = estimate_weighted_mean(points, [weights[key] for key in verdicts], bootstrap)
    p_value = sign_test(wins, losses) if points else None
    return Contest(wins, ties, losses, expected - len(verdicts), rate, p_value, verdicts)


def estimate_weighted_mean(
    values: Sequence[float], weights: Sequence[float], bootstrap: BootstrapConfig
) -> Estimate:
    """Σ w x / Σ w of values between 0 and 1, with its interval.

    The interval is that of the mean of m + w (x − m) / w̄, whose spread is that of the ratio as far
    as it is linear.
    """
    if not values:
        return Estimate(None, None, None, 0)
    data, weight = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    mean = float(np.average(data, weights=weight))
    found = estimate_mean([*(mean + weight * (data - mean) / weight.mean())], bootstrap)
    low, high = (end if end is None else min(max(end, 0.0), 1.0) for end in (found.low, found.high))
    return Estimate(mean, low, high, found.n)


def adjust_for_length(
    points: ByPrompt, gaps: ByPrompt, level: float, weights: ByPrompt | None = None
) -> Estimate | None:
    """The win rate if both answers had the same length: logit p = θ + φ tanh(gap / σ), at gap 0.

    Below 15 % and above 85 % it bends towards the middle: read the plain rate there too.
    Its interval is that of θ, with Student's t. θ's variance comes from each prompt's own residual
    (HC3), so no resample has to be fitted.
    """
    return _adjust_rate(points, [gaps], np.tanh, level, weights)


def adjust_for_style(
    points: ByPrompt, gaps: Sequence[ByPrompt], level: float, weights: ByPrompt | None = None
) -> Estimate | None:
    """The win rate if both wrote in the same style: logit p = θ + Σ φ_k gap_k / σ_k, at gaps of 0.

    As `adjust_for_length` otherwise.
    """
    return _adjust_rate(points, gaps, np.positive, level, weights)


def _adjust_rate(
    points: ByPrompt,
    gaps: Sequence[ByPrompt],
    shape: Callable[[np.ndarray], np.ndarray],
    level: float,
    weights: ByPrompt | None,
) -> Estimate | None:
    """θ of logit p = θ + Σ φ_k shape(gap_k / σ_k), as a rate."""
    common = sorted(points.keys() & set.intersection(*(set(gap) for gap in gaps)))
    if len(common) < MIN_FIT_PROMPTS * len(gaps):
        return None
    won = np.array([points[key] for key in common], dtype=float)
    weight = np.array([1.0 if weights is None else weights[key] for key in common])
    columns = [np.ones(len(common))]
    for gap in gaps:
        values = np.array([gap[key] for key in common], dtype=float)
        spread = float(values.std())
        columns.append(shape(values / spread) if spread > TIE else np.zeros(len(values)))
    design = np.column_stack(columns)
    coefficients, information = _fit_logistic(won, design, weight)
    rate = expit(design @ coefficients)
    # How far each prompt's residual moves θ and φ.
    pull = np.linalg.solve(information, design.T).T
    leverage = weight * rate * (1 - rate) * np.sum(design * pull, axis=1)
    error = float(np.sqrt(np.sum((pull[:, 0] * weight * (won - rate) / (1 - leverage)) ** 2)))
    reach = float(stdtrit(len(common) - design.shape[1], (1 + level) / 2)) * error
    low, mean, high = (float(expit(coefficients[0] + step)) for step in (-reach, 0.0, reach))
    return Estimate(mean, low, high, len(common))


def _fit_logistic(
    won: np.ndarray, design: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The maximum-likelihood coefficients by Newton's method, and the information there."""
    at = np.zeros(design.shape[1])
    for _ in range(MAX_NEWTON_STEPS):
        rate = expit(design @ at)
        slope = design.T @ (weight * (won - rate)) - 2 * RIDGE * at
        weighted = (design * (weight * rate * (1 - rate))[:, None]).T @ design
        information = weighted + 2 * RIDGE * np.eye(len(at))
        # Far from the maximum a whole step goes too far.
        step = np.clip(np.linalg.solve(information, slope), -1, 1)
        at = at + step
        if np.abs(step).max() < TIE:
            break
    return at, information


def sign_test(wins: int, losses: int) -> float:
    decisive = wins + losses
    return float(binomtest(wins, decisive, 0.5).pvalue) if decisive else 1.0


def sign_flip_test(gaps: Sequence[float], bootstrap: BootstrapConfig) -> float | None:
    """How often the mean is at least as far from 0 under random signs of the differences."""
    data = np.asarray(gaps, dtype=float)
    if not len(data):
        return None
    nonzero = data[np.abs(data) > TIE]
    observed = abs(nonzero.sum()) - TIE * len(data)
    extreme, remaining = 0, bootstrap.resamples
    rng = np.random.default_rng(bootstrap.seed)
    while remaining > 0:
        rows = min(remaining, max(1, MAX_CELLS // max(len(nonzero), 1)))
        signs = rng.integers(0, 2, (rows, len(nonzero)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ nonzero) >= observed).sum())
        remaining -= rows
    return (1 + extreme) / (1 + bootstrap.resamples)


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: rejecting below α errs at all in at most a share α of families.

    A test that could not be made (None) does not belong to the family.
    """
    ranked = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(ranked):
        largest = max(largest, min(1.0, value * (len(ranked) - rank)))
        adjusted[place] = largest
    return adjusted


def _pick_winner(gap: float) -> str:
    if abs(gap) <= TIE:
        return "tie"
    return "a" if gap > 0 else "b"


def _common_prompts(a: ByPrompt, b: ByPrompt) -> list[str]:
    return sorted(a.keys() & b.keys())
