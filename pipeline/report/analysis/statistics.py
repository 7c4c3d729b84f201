"""Means, paired differences and contests with their intervals. The unit is the prompt: one number per prompt comes in.

Numbers arrive as `{prompt_id: value}`; two models are joined by prompt id, never by position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, stdtrit
from scipy.stats import binomtest

# Two means of the same scores summed in another order differ in the last digits: that is a tie.
TIE = 1e-9
# A difference of zero is rejected in 80 % of samples when the true one is (1.96 + 0.84) standard errors away.
POWER_80 = 2.8
CELLS_AT_ONCE = 1_000_000
FLOOR = 0.1  # of the variance: a resample that missed the rare large values would divide by next to nothing
FEWEST = 10  # prompts, below which a curve says nothing
PRIOR = 0.01  # keeps the curve finite where one side won them all
NEWTON = 100  # steps at most; ten are usual

ByPrompt = Mapping[str, float]


@dataclass(frozen=True)
class BootstrapConfig:
    """How intervals are drawn."""

    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts. Without prompts there is no mean, with one there is no interval."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Of two models' values on the same prompts; `better`, `same` and `worse` are shares of these prompts."""

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


def estimate(values: Sequence[float], sampling: BootstrapConfig) -> Estimate:
    """The mean with its interval; equal values give the interval of one point."""
    data = np.asarray(values, dtype=float)
    n = len(data)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = float(data.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    if np.ptp(data) <= TIE:
        return Estimate(mean, mean, mean, n)
    return Estimate(mean, *_interval(data, sampling), n)


def _interval(data: np.ndarray, sampling: BootstrapConfig) -> tuple[float, float]:
    """At each end the farther one of Student's t and the bootstrap of t, and never beyond the data.

    Student's t holds where differences are heavy-tailed or mostly zero, the bootstrap of t where values are skewed.
    Each fails where the other holds, and BCa fails in both: tests/test_statistics.py has the simulation.
    """
    n, mean = len(data), float(data.mean())
    error = float(data.std(ddof=1)) / n**0.5
    beyond = (1 - sampling.level) / 2
    student = float(stdtrit(n - 1, 1 - beyond))
    below, above = np.quantile(_resampled_t(data - mean, sampling), [beyond, 1 - beyond])
    low, high = mean - error * max(student, above), mean + error * max(student, -below)
    return max(float(low), float(data.min())), min(float(high), float(data.max()))


def _resampled_t(centred: np.ndarray, sampling: BootstrapConfig) -> np.ndarray:
    """How many of its own standard errors the mean of each resample lies above the sample's mean, which is 0."""
    n, rng = len(centred), np.random.default_rng(sampling.seed)
    scaled = centred / centred.std()
    found = np.empty(sampling.resamples)
    rows = max(1, CELLS_AT_ONCE // n)
    for start in range(0, sampling.resamples, rows):
        drawn = scaled[
            rng.integers(0, n, (min(rows, sampling.resamples - start), n), dtype=np.int32)
        ]
        means = drawn.mean(axis=1)
        variances = np.maximum(np.einsum("ij,ij->i", drawn, drawn) / n - means**2, FLOOR)
        found[start : start + rows] = means * np.sqrt((n - 1) / variances)
    return found


def difference(a: ByPrompt, b: ByPrompt, wanted: int, sampling: BootstrapConfig) -> Difference:
    """a − b over their common prompts; `wanted` is how many there would be had nothing failed.

    Where no prompt differs from another, nothing is known of the spread, and so of what could be detected.
    """
    common = _common(a, b)
    gaps = [a[key] - b[key] for key in common]
    spreads = len(gaps) > 1 and np.ptp(gaps) > TIE
    smallest = POWER_80 * float(np.std(gaps, ddof=1)) / len(gaps) ** 0.5 if spreads else None
    sides = [_verdict(gap) for gap in gaps]
    shares = [sides.count(side) / len(sides) if sides else None for side in ("a", "tie", "b")]
    return Difference(
        estimate(gaps, sampling), wanted - len(common), smallest, sign_flip(gaps, sampling), *shares
    )


def contest(a: ByPrompt, b: ByPrompt, wanted: int, sampling: BootstrapConfig) -> Contest:
    """Who has the higher mean on each common prompt. A tie is half a win; the sign test asks decisive prompts only."""
    verdicts = {key: _verdict(a[key] - b[key]) for key in _common(a, b)}
    wins, ties, losses = (sum(v == side for v in verdicts.values()) for side in ("a", "tie", "b"))
    points = [{"a": 1.0, "tie": 0.5, "b": 0.0}[verdict] for verdict in verdicts.values()]
    rate = estimate(points, sampling)
    return Contest(
        wins,
        ties,
        losses,
        wanted - len(verdicts),
        rate,
        sign_test(wins, losses) if points else None,
        verdicts,
    )


def length_adjusted(points: ByPrompt, gaps: ByPrompt, level: float) -> Estimate | None:
    """The win rate that would be, were no answer longer than the other's: logit p = θ + φ tanh(gap / σ), at gap 0.

    Below 15 % and above 85 % it bends towards the middle: read it beside the plain rate there. Its interval is that of
    θ, whose variance comes from each prompt's own residual (HC3), with Student's t: no resample has to be fitted.
    """
    common = _common(points, gaps)
    if len(common) < FEWEST:
        return None
    won, gap = (np.array([table[key] for key in common], dtype=float) for table in (points, gaps))
    spread = float(gap.std())
    longer = np.tanh(gap / spread) if spread > TIE else np.zeros(len(gap))
    known = np.column_stack([np.ones(len(gap)), longer])
    at, information = _fitted(won, known)
    rate = expit(known @ at)
    pull = np.linalg.solve(information, known.T).T  # how far each prompt's residual moves θ and φ
    leverage = rate * (1 - rate) * np.sum(known * pull, axis=1)
    error = float(np.sqrt(np.sum((pull[:, 0] * (won - rate) / (1 - leverage)) ** 2)))
    reach = float(stdtrit(len(common) - 2, (1 + level) / 2)) * error
    low, mean, high = (float(expit(at[0] + step)) for step in (-reach, 0.0, reach))
    return Estimate(mean, low, high, len(common))


def _fitted(won: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most likely coefficients of a logistic curve by Newton's steps, and the curvature there."""
    at = np.zeros(known.shape[1])
    for _ in range(NEWTON):
        rate = expit(known @ at)
        slope = known.T @ (won - rate) - 2 * PRIOR * at
        information = (known * (rate * (1 - rate))[:, None]).T @ known + 2 * PRIOR * np.eye(len(at))
        step = np.clip(
            np.linalg.solve(information, slope), -1, 1
        )  # far from the top a whole step goes too far
        at = at + step
        if np.abs(step).max() < TIE:
            break
    return at, information


def sign_test(wins: int, losses: int) -> float:
    decisive = wins + losses
    return float(binomtest(wins, decisive, 0.5).pvalue) if decisive else 1.0


def sign_flip(gaps: Sequence[float], sampling: BootstrapConfig) -> float | None:
    """How often the mean is as far from 0 when each prompt's difference may as well have the other sign."""
    data = np.asarray(gaps, dtype=float)
    if not len(data):
        return None
    told = data[np.abs(data) > TIE]
    seen, found, left = abs(told.sum()) - TIE * len(data), 0, sampling.resamples
    rng = np.random.default_rng(sampling.seed)
    while left > 0:
        rows = min(left, max(1, CELLS_AT_ONCE // max(len(told), 1)))
        signs = rng.integers(0, 2, (rows, len(told)), dtype=np.int8) * 2 - 1
        found += int((np.abs(signs @ told) >= seen).sum())
        left -= rows
    return (1 + found) / (1 + sampling.resamples)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Each p-value as it counts among its family: whoever rejects below α errs once in α families at most.

    A test that could not be made (None) is none of the family.
    """
    made = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    counted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(made):
        largest = max(largest, min(1.0, value * (len(made) - rank)))
        counted[place] = largest
    return counted


def _verdict(gap: float) -> str:
    if abs(gap) <= TIE:
        return "tie"
    return "a" if gap > 0 else "b"


def _common(a: ByPrompt, b: ByPrompt) -> list[str]:
    return sorted(a.keys() & b.keys())
