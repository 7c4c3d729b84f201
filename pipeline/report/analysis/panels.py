"""Panels: several judges of one contest, or the members of an ensemble, as one.

A panel has a verdict on a prompt where all its judges have one. Agreement is Fleiss' κ among all of
them and Cohen's κ between two, over the three verdicts win, tie and loss. Without each judge in
turn, the panel's result shows whether it hangs on that judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from pipeline.config import PANEL, is_merged
from pipeline.data.label_files import find_majority
from pipeline.report.analysis.aggregate import ModelDuel, find_model
from pipeline.report.analysis.agreement import cohen_kappa, fleiss_kappa, mean
from pipeline.report.analysis.ancestors import Ancestor
from pipeline.report.analysis.eval_results import SFT, EvalResult, is_baseline
from pipeline.report.analysis.judges import POINTS, build_duel
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    ByPrompt,
    Estimate,
    estimate_difference,
)

Combine = Literal["majority", "mean"]
EVEN_RATE, NO_GAIN = 0.5, 0.0  # what a win rate, or a difference, is without any


@dataclass(frozen=True)
class Ensemble:
    """An ensemble of the evaluation's scorers."""

    name: str
    combine: str
    weights: Mapping[str, float]


# ── judges of one contest ─────────────────────────────────────────────────────────────────────────


def combine_judges(
    duels: Sequence[ModelDuel], combine: Combine | None, bootstrap: BootstrapConfig
) -> tuple[list[ModelDuel], list[dict[str, Any]]]:
    """The panel's contest for each two models that several judges compared, and its description."""
    contests, rows = [], []
    for members in _group_by_models(duels) if combine else ():
        assert combine
        whole = _combine(members, combine, bootstrap)
        contests.append(whole)
        rows.append(_describe_judges(whole, members, combine, bootstrap))
    return contests, rows


def _group_by_models(duels: Sequence[ModelDuel]) -> list[list[ModelDuel]]:
    groups: dict[tuple[str, str], list[ModelDuel]] = {}
    for duel in duels:
        groups.setdefault((duel.a.name, duel.b.name), []).append(duel)
    return [members for members in groups.values() if len(members) > 1]


def _combine(
    members: Sequence[ModelDuel], combine: Combine, bootstrap: BootstrapConfig
) -> ModelDuel:
    first = members[0]
    keys = [
        key for key in first.contest.verdicts if all(key in one.contest.verdicts for one in members)
    ]
    if combine == "mean":
        points, weights = _average_judges(members, keys)
    else:
        points, weights = {key: _find_majority(members, key) for key in keys}, None
    expected = max(one.contest.missing + len(one.contest.verdicts) for one in members)
    return build_duel(PANEL, first.a, first.b, points, expected, bootstrap, weights)


def _average_judges(
    members: Sequence[ModelDuel], keys: Sequence[str]
) -> tuple[ByPrompt, ByPrompt | None]:
    """The judges' mean points, each weighted as in that judge's own win rate.

    A prompt counts as the verdicts on it do, on average.
    """
    points, weights = {}, {}
    for key in keys:
        votes = [one.weights[key] if one.weights else 1.0 for one in members]
        won = sum(vote * one.scores[0][key] for vote, one in zip(votes, members, strict=True))
        points[key], weights[key] = won / sum(votes), sum(votes) / len(votes)
    return points, weights if any(one.weights for one in members) else None


def _find_majority(members: Sequence[ModelDuel], key: str) -> float:
    """The most frequent verdict, each judge with one vote; a split is a tie."""
    majority = find_majority(POINTS[one.contest.verdicts[key]] for one in members)
    return 0.5 if majority is None else majority


def _describe_judges(
    whole: ModelDuel, members: Sequence[ModelDuel], combine: Combine, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    def describe_rest(judge: str) -> Estimate:
        rest = [one for one in members if one.judge != judge]
        left = rest[0] if len(rest) == 1 else _combine(rest, combine, bootstrap)
        return left.contest.rate

    verdicts = {one.judge: one.contest.verdicts for one in members}
    rest = {judge: describe_rest(judge) for judge in verdicts}
    head = {"panel": PANEL, "combine": combine, "a": whole.a.name, "b": whole.b.name}
    return head | _describe_panel(verdicts, whole.contest.rate, rest, EVEN_RATE)


# ── an ensemble of scorers ────────────────────────────────────────────────────────────────────────


def list_ensembles(ancestors: Sequence[Ancestor], split: str) -> list[Ensemble]:
    """Those that scored the evaluation of SFT, as its Step records them."""
    steps = [each for each in ancestors if (each.stage, each.label) == ("score", f"{split} {SFT}")]
    scorers = steps[0].config.get("scorers", {}) if steps else {}
    return [
        Ensemble(name, one["combine"], one["weights"])
        for name, one in sorted(scorers.items())
        if one.get("kind") == "ensemble" and len(one["weights"]) > 1
    ]


def describe_ensembles(
    ensembles: Sequence[Ensemble],
    results: Sequence[EvalResult],
    duels: Sequence[ModelDuel],
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """Each model against SFT by each ensemble; `duels` are those by scores."""
    sft = find_model(results, SFT)
    models = [
        one
        for one in results
        if one.name.startswith("round-") or is_merged(one.name) or is_baseline(one.name)
    ]
    return [
        row
        for ensemble in ensembles
        for model in models
        if sft and (row := _describe_ensemble(ensemble, model, sft, duels, bootstrap))
    ]


def _describe_ensemble(
    ensemble: Ensemble,
    model: EvalResult,
    sft: EvalResult,
    duels: Sequence[ModelDuel],
    bootstrap: BootstrapConfig,
) -> dict[str, Any] | None:
    met = {one.judge: one for one in duels if (one.a.name, one.b.name) == (model.name, SFT)}
    if not {ensemble.name, *ensemble.weights} <= met.keys():
        return None
    verdicts = {name: met[name].contest.verdicts for name in ensemble.weights}
    new, old = met[ensemble.name].scores
    whole = estimate_difference(new, old, len(old), bootstrap).estimate
    rest = {}
    if ensemble.combine == "mean":  # the other ways need the single answers' scores
        for left_out in ensemble.weights:
            weights = {name: w for name, w in ensemble.weights.items() if name != left_out}
            new, old = (_weigh_members(one, weights) for one in (model, sft))
            rest[left_out] = estimate_difference(new, old, len(old), bootstrap).estimate
    head = {"panel": ensemble.name, "combine": ensemble.combine, "a": model.name, "b": sft.name}
    return head | _describe_panel(verdicts, whole, rest, NO_GAIN)


def _weigh_members(model: EvalResult, weights: Mapping[str, float]) -> ByPrompt:
    """The weighted mean of the members' means, by prompt."""
    means = {name: model.scores[name].means for name in weights}
    prompts = sorted(set.intersection(*(set(own) for own in means.values())))
    total = sum(weights.values())
    return {
        key: sum(weight * means[name][key] for name, weight in weights.items()) / total
        for key in prompts
    }


# ── what both have ────────────────────────────────────────────────────────────────────────────────


def _describe_panel(
    verdicts: Mapping[str, Mapping[str, str]],
    whole: Estimate,
    rest: Mapping[str, Estimate],
    even: float,
) -> dict[str, Any]:
    """`verdicts`: by judge and prompt; `rest`: the result without each judge."""
    names = [*verdicts]
    prompts = sorted(set.intersection(*(set(own) for own in verdicts.values())))
    points = {name: [POINTS[verdicts[name][key]] for key in prompts] for name in names}

    def measure_kappa(judges: Sequence[str]) -> float | None:
        return fleiss_kappa([*zip(*(points[name] for name in judges), strict=True)])

    pairs: list[dict[str, Any]] = [
        {
            "judges": [one, other],
            "exact": mean(a == b for a, b in zip(points[one], points[other], strict=True)),
            "kappa": cohen_kappa([*zip(points[one], points[other], strict=True)]),
        }
        for one, other in combinations(names, 2)
    ]
    without = [
        {
            "judge": name,
            **_describe_result(rest.get(name), even),
            "kappa": measure_kappa([other for other in names if other != name]),
            "with_others": mean(
                pair["kappa"]
                for pair in pairs
                if name in pair["judges"] and pair["kappa"] is not None
            ),
        }
        for name in names
    ]
    return {
        "even": even,
        "judges": names,
        "prompts": len(prompts),
        **_describe_result(whole, even),
        "kappa": measure_kappa(names),
        "pairs": pairs,
        "without": without,
    }


def _describe_result(estimate: Estimate | None, even: float) -> dict[str, Any]:
    """A result and what its interval says: better, worse or unclear; None where there is none."""
    if estimate is None or estimate.low is None or estimate.high is None:
        mean_value = estimate.mean if estimate else None
        return {"mean": mean_value, "low": None, "high": None, "verdict": None}
    side = "better" if estimate.low > even else "worse" if estimate.high < even else "unclear"
    ends = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    return {**ends, "verdict": side}
