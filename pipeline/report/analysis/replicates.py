"""Seeds as replicates: the last round's model, trained again by other seeds from the same pairs.

Seed i gains d_ip = μ + s_i + b_p + e_ip over SFT on prompt p: s_i is what the seed does to the
training (order of the pairs, first weights of an adapter, dropout), b_p what the prompt is worth
together with the luck of SFT's own answer to it, which all seeds are compared with, and e_ip the
rest, with the luck of this seed's answer. The mean over k seeds and n prompts has the variance
σ²_s/k + σ²_b/n + σ²_e/kn. It is estimated from the means m_i of the seeds and m_p of the prompts
and from the residuals r_ip = d_ip − m_i − m_p + m:

    S = var(m_i)/k               of which σ²_e/kn is the share of chance in the answers
    B = var(m_p)/n               the same share again
    E = Σ r²/((k−1)(n−1)kn)      this share

Between seeds: m ± t(k−1)·√S, other seeds on these prompts. Between prompts: the interval of m_p, as
for any model, by these seeds. Both: m ± t(ν)·√V with V = B + max(S − E, 0), the two-way random
effects, and ν by Satterthwaite (1946). ν is itself estimated from k values, so that it alone covers
91 % at 3 seeds: the interval of both is nowhere narrower than one of the other two.
tests/report/test_replicates.py has the simulation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit

from pipeline.report.analysis.aggregate import (
    describe_bounds,
    describe_difference,
    find_model,
    select_rounds,
)
from pipeline.report.analysis.eval_results import (
    SFT,
    EvalResult,
    ModelScores,
    is_criterion,
)
from pipeline.report.analysis.statistics import TIE, BootstrapConfig, ByPrompt, Estimate
from pipeline.report.formatting import ReportRow, measure_reach


@dataclass(frozen=True)
class SeedSpread:
    """The mean gain over all seeds on the prompts that all of them have, with its intervals."""

    both: Estimate
    seeds: Estimate
    p_value: float | None


def estimate_spread(
    gaps: Sequence[ByPrompt], prompts: Estimate, p_value: float | None, level: float
) -> SeedSpread:
    """`prompts` and `p_value`: the interval and the test of the seeds' mean over prompts."""
    common = sorted(set.intersection(*(set(gap) for gap in gaps)))
    table = np.array([[gap[key] for key in common] for gap in gaps], dtype=float)
    k, n = table.shape
    mean = prompts.mean
    if mean is None or prompts.low is None or prompts.high is None:
        return SeedSpread(Estimate(mean, None, None, n), Estimate(mean, None, None, k), p_value)
    by_seed, by_prompt = table.mean(axis=1), table.mean(axis=0)
    residuals = table - by_seed[:, None] - by_prompt + mean
    chance = float(np.sum(residuals**2)) / ((k - 1) * (n - 1) * k * n)
    of_seeds, of_prompts = float(by_seed.var(ddof=1)) / k, float(by_prompt.var(ddof=1)) / n
    excess = max(of_seeds - chance, 0.0)
    variance = of_prompts + excess
    weights = of_prompts**2 / (n - 1) + excess**2 / (k - 1)
    freedom = variance**2 / weights if weights else n - 1.0
    reach, p_both = _test_mean(mean, variance, freedom, level)
    reach_of_seeds, p_of_seeds = _test_mean(mean, of_seeds, k - 1.0, level)
    widest = max(reach, reach_of_seeds)
    low, high = min(mean - widest, prompts.low), max(mean + widest, prompts.high)
    return SeedSpread(
        Estimate(mean, low, high, n),
        Estimate(mean, mean - reach_of_seeds, mean + reach_of_seeds, k),
        max(p_both, p_of_seeds, p_value or 0.0),
    )


def _test_mean(mean: float, variance: float, freedom: float, level: float) -> tuple[float, float]:
    """How far the interval reaches by Student's t, and the p-value of a mean of 0."""
    error = variance**0.5
    if error <= TIE:
        return 0.0, float(abs(mean) <= TIE)
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    return reach, 2 * float(stdtr(freedom, -abs(mean) / error))


# ── from evaluations to report.json ──────────────────────────────────────────


def average_over_seeds(
    results: Sequence[EvalResult], replicates: Sequence[EvalResult]
) -> list[EvalResult]:
    """The last round with its scores and KL averaged over its seeds, by prompt."""
    last = _find_replicated(results, replicates)
    return [_average(model, replicates) if model is last else model for model in results]


def _find_replicated(
    results: Sequence[EvalResult], replicates: Sequence[EvalResult]
) -> EvalResult | None:
    rounds = select_rounds([*results])
    return rounds[-1] if rounds and replicates else None


def _average(first: EvalResult, others: Sequence[EvalResult]) -> EvalResult:
    runs = [first, *others]
    averaged = {
        name: _average_scores([run.scores[name] for run in runs])
        for name in first.scores
        if all(name in run.scores for run in runs)
    }
    kl = _average_by_prompt([run.kl for run in runs])
    return replace(first, scores={**first.scores, **averaged}, kl=kl)


def _average_scores(scores: Sequence[ModelScores]) -> ModelScores:
    return ModelScores(
        _average_by_prompt([one.means for one in scores]),
        frozenset[str]().union(*(one.expected for one in scores)),
        sum(one.failed for one in scores),
    )


def _average_by_prompt(values: Sequence[ByPrompt]) -> dict[str, float]:
    """On the prompts that all have."""
    common = set(values[0]).intersection(*values)
    return {key: sum(one[key] for one in values) / len(values) for key in sorted(common)}


def widen_differences(
    differences: Sequence[ReportRow],
    results: Sequence[EvalResult],
    replicates: Sequence[EvalResult],
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """The averaged model's differences with the interval of both, and those of each alone."""
    first, sft = _find_replicated(results, replicates), find_model(results, SFT)
    if first is None or sft is None:
        return [dict(row) for row in differences]
    runs = [first, *replicates]
    return [
        _widen(row, runs, sft, bootstrap)
        if row["model"] == first.name
        and all(row["scorer"] in model.scores for model in [*runs, sft])
        else dict(row)
        for row in differences
    ]


def note_single_seed(
    verdict: dict[str, Any], chosen: str | None, differences: list[dict[str, Any]]
) -> dict[str, Any]:
    """Say so where the seeds are of the last round, and the verdict is about another model."""
    replicated = {row["model"] for row in differences if "between" in row}
    others = {row["model"] for row in differences} - replicated
    if not replicated or chosen not in others:
        return verdict
    note = f" {chosen} is of one seed: its interval is between prompts alone."
    return {**verdict, "why": f"{verdict['why']}{note}"}


def _widen(
    row: ReportRow, runs: Sequence[EvalResult], sft: EvalResult, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    scorer = row["scorer"]
    base = sft.scores[scorer].means
    gaps = [
        {key: value - base[key] for key, value in run.scores[scorer].means.items() if key in base}
        for run in runs
    ]
    prompts = Estimate(row["mean"], row["low"], row["high"], row["n"])
    spread = estimate_spread(gaps, prompts, row["p_value"], bootstrap.level)
    intervals = {
        "seeds": {**describe_bounds(spread.seeds), "n": len(runs)},
        "prompts": {**describe_bounds(prompts), "n": row["n"]},
    }
    return {
        **row,
        **describe_bounds(spread.both),
        "p_value": spread.p_value,
        "between": intervals,
        "wider": max(intervals, key=lambda name: measure_reach(intervals[name])),
    }


def describe_seeds(
    results: Sequence[EvalResult],
    replicates: Sequence[EvalResult],
    names: Sequence[str],
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """A row for each seed of the last round and each scorer: its score, gain and KL."""
    first, sft = _find_replicated(results, replicates), find_model(results, SFT)
    if first is None or sft is None:
        return []
    return [
        {
            "model": run.name,
            "fingerprint": run.fingerprint,
            "scorer": name,
            "score": _mean(run.scores[name].means) if name in run.scores else None,
            **_describe_gain(run, sft, name, bootstrap),
            "kl": _mean(run.kl),
        }
        for run in (first, *replicates)
        for name in names
        if not is_criterion(name)
    ]


def _describe_gain(
    run: EvalResult, sft: EvalResult, scorer: str, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    gap = describe_difference(run, sft, scorer, bootstrap)
    return {"gain": gap["mean"], **{name: gap[name] for name in ("low", "high", "n")}}


def _mean(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None
