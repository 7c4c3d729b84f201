"""From evaluation results to report.json: models, duels, differences, training, what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.config import CONTROL, VerdictConfig, is_merged
from pipeline.report.analysis.eval_results import (
    SFT,
    EvalResult,
    ModelScores,
    is_baseline,
    is_criterion,
    mean_by_prompt,
)
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    ByPrompt,
    Contest,
    Estimate,
    count_wins,
    estimate_difference,
    estimate_mean,
)
from pipeline.report.analysis.text_metrics import (
    find_commonest_opening,
    measure_distinct,
    measure_other_language,
)

NO_SCORES = ModelScores({}, frozenset(), 0)


@dataclass(frozen=True)
class ModelDuel:
    """Two models on the same prompts; `a` is the newer one. `scores` are theirs by prompt.

    `orders`: by prompt, the judge's verdict each time that it was asked (null: no verdict).
    `weights`: as how many prompts each one counts; None: each as one.
    """

    a: EvalResult
    b: EvalResult
    judge: str
    contest: Contest
    scores: tuple[ByPrompt, ByPrompt]
    length_adjusted: Estimate | None = None
    style_adjusted: Estimate | None = None
    flip_rate: float | None = None
    orders: Mapping[str, list[str | None]] = field(default_factory=dict)
    weights: ByPrompt | None = None


def bootstrap_config(cfg: VerdictConfig) -> BootstrapConfig:
    return BootstrapConfig(cfg.level, cfg.resamples, cfg.seed)


def list_scorers(results: list[EvalResult], primary: str) -> list[str]:
    """The primary scorer, its criteria, then the others."""
    names = {name for model in results for name in model.scores}
    return sorted(names, key=lambda name: (name.partition("/")[0] != primary, name.split("/")))


def describe_models(
    results: list[EvalResult],
    names: list[str],
    last_words: Mapping[str, str],
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """`last_words`: the text that each prompt ends with."""
    return [_describe_model(model, names, last_words, bootstrap) for model in results]


def _describe_model(
    model: EvalResult, names: list[str], last_words: Mapping[str, str], bootstrap: BootstrapConfig
) -> dict[str, Any]:
    answers = model.answers
    in_other_language = [*measure_other_language(answers, last_words).values()]
    tokens, reasoning = (
        estimate_mean([*mean_by_prompt(answers, column).values()], bootstrap)
        for column in ("tokens", "reasoning_tokens")
    )
    kl = estimate_mean([*model.kl.values()], bootstrap)
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "metrics": {
            name: _describe_scores(model.scores[name], bootstrap)
            for name in names
            if name in model.scores
        },
        "tokens": describe_bounds(tokens),
        "reasoning": describe_bounds(reasoning),
        "truncated": _mean_over_prompts(answers, "truncated"),
        "repetition": _mean_over_prompts(answers, "repetition"),
        "distinct": measure_distinct(answers),
        "refusals": _mean_over_prompts(answers, "refusals"),
        "markdown": _mean_over_prompts(answers, "markdown"),
        "opening": find_commonest_opening(answers),
        "other_language": {
            "share": _mean(in_other_language),
            "n": len(in_other_language),
        },
        "kl": {**describe_estimate(kl), "why": model.no_kl_reason},
    }


def _describe_scores(scores: ModelScores, bootstrap: BootstrapConfig) -> dict[str, Any]:
    mean = estimate_mean([*scores.means.values()], bootstrap)
    return {**describe_estimate(mean), "failed": scores.failed}


def _mean_over_prompts(answers: pl.DataFrame, column: str) -> float | None:
    return _mean([*mean_by_prompt(answers, column).values()])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def describe_bounds(estimate: Estimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def describe_estimate(estimate: Estimate) -> dict[str, Any]:
    return {**describe_bounds(estimate), "n": estimate.n}


def describe_differences(
    results: list[EvalResult], names: list[str], bootstrap: BootstrapConfig
) -> list[dict[str, Any]]:
    """Every model against SFT, paired by prompt, for each scorer that either of them has."""
    sft = find_model(results, SFT)
    if sft is None:
        return []
    return [
        describe_difference(model, sft, name, bootstrap)
        for model in results
        if model is not sft
        for name in names
        if name in model.scores or name in sft.scores
    ]


def describe_difference(
    model: EvalResult, sft: EvalResult, scorer: str, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    a, b = model.scores.get(scorer, NO_SCORES), sft.scores.get(scorer, NO_SCORES)
    difference = estimate_difference(a.means, b.means, len(a.expected | b.expected), bootstrap)
    return {
        "model": model.name,
        "scorer": scorer,
        "against": sft.name,
        **describe_estimate(difference.estimate),
        "missing": difference.missing,
        "detectable": difference.detectable,
        "p_value": difference.p_value,
        "better": difference.better,
        "same": difference.same,
        "worse": difference.worse,
    }


def score_duels(
    results: list[EvalResult], names: Sequence[str], bootstrap: BootstrapConfig
) -> list[ModelDuel]:
    """By each scorer's means, without its criteria.

    Rounds meet SFT and the round before, merged models and baselines SFT and the last round, the
    control SFT.
    """
    sft, rounds = find_model(results, SFT), select_rounds(results)
    against_sft = [(model, sft) for model in rounds if sft]
    control = find_model(results, CONTROL)
    of_control = [(control, sft)] if control and sft else []
    opponents = ([sft] if sft else []) + rounds[-1:]
    guests = [model for model in results if is_merged(model.name) or is_baseline(model.name)]
    of_guests = [(model, old) for model in guests for old in opponents]
    between_rounds = zip(rounds[1:], rounds, strict=False)
    met = [*against_sft, *between_rounds, *of_guests, *of_control]
    scorers = [name for name in names if not is_criterion(name)]
    return [score_duel(a, b, name, bootstrap) for name in scorers for a, b in met]


def score_duel(a: EvalResult, b: EvalResult, scorer: str, bootstrap: BootstrapConfig) -> ModelDuel:
    of_a, of_b = a.scores.get(scorer, NO_SCORES), b.scores.get(scorer, NO_SCORES)
    expected = len(of_a.expected | of_b.expected)
    contest = count_wins(of_a.means, of_b.means, expected, bootstrap)
    return ModelDuel(a, b, scorer, contest, (of_a.means, of_b.means))


def describe_duel(duel: ModelDuel) -> dict[str, Any]:
    contest = duel.contest
    return {
        "a": duel.a.name,
        "b": duel.b.name,
        "judge": duel.judge,
        "wins": contest.wins,
        "ties": contest.ties,
        "losses": contest.losses,
        "win_rate": contest.rate.mean,
        "low": contest.rate.low,
        "high": contest.rate.high,
        "p_value": contest.p_value,
        **_describe_adjusted_rate("length_adjusted", duel.length_adjusted),
        **_describe_adjusted_rate("style_adjusted", duel.style_adjusted),
        "flip_rate": duel.flip_rate,
        "failed": contest.missing,
    }


def _describe_adjusted_rate(name: str, rate: Estimate | None) -> dict[str, float | None]:
    """An adjusted win rate and its interval; a contest of scores has none."""
    mean, low, high = (rate.mean, rate.low, rate.high) if rate else (None, None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def tabulate_verdicts(duels: list[ModelDuel]) -> pl.DataFrame:
    rows = [
        (
            prompt,
            duel.a.name,
            duel.b.name,
            duel.judge,
            verdict,
            duel.orders.get(prompt, []),
            *(scores[prompt] for scores in duel.scores),
        )
        for duel in duels
        for prompt, verdict in duel.contest.verdicts.items()
    ]
    text, figure = pl.String, pl.Float64
    columns: dict[str, Any] = {
        "prompt_id": text,
        "a": text,
        "b": text,
        "judge": text,
        "verdict": text,
        "orders": pl.List(text),
        "score_a": figure,
        "score_b": figure,
    }
    return pl.DataFrame(rows, schema=columns, orient="row")


def describe_training(results: list[EvalResult]) -> list[dict[str, Any]]:
    """Each round's curves as TRL logged them; rounds without a log are left out."""
    return [_describe_curves(model) for model in select_rounds(results) if model.training]


def _describe_curves(model: EvalResult) -> dict[str, Any]:
    train = [_describe_point(line, "") for line in model.training if "loss" in line]
    dev = [_describe_point(line, "eval_") for line in model.training if "eval_loss" in line]
    steps = max((point["step"] for point in train if point["step"] is not None), default=None)
    ending = {name: model.summary.get(name) for name in ("planned", "kept", "stopped")}
    kept = ending["kept"]
    published = [point for point in train if kept is None or (point["step"] or 0) <= kept]
    final = {key: _final_mean(published, key) for key in ("loss", "margin", "accuracy")}
    head = {"round": model.name, "fingerprint": model.fingerprint, "steps": steps, **ending}
    return {**head, **final, "curve": train, "dev": dev}


def _final_mean(curve: list[dict[str, Any]], key: str) -> float | None:
    """The mean over the last tenth of what was logged, because one batch is noise."""
    values = [point[key] for point in curve if point[key] is not None]
    return _mean(values[-max(1, len(values) // 10) :])


def _describe_point(line: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        "step": line.get("step"),
        "loss": line.get(f"{prefix}loss"),
        "margin": line.get(f"{prefix}rewards/margins"),
        "accuracy": line.get(f"{prefix}rewards/accuracies"),
    }


def list_missing(results: list[EvalResult]) -> list[dict[str, str]]:
    return [{"model": model.name, "what": what} for model in results for what in model.missing]


def find_model(results: Sequence[EvalResult], name: str) -> EvalResult | None:
    return next((model for model in results if model.name == name), None)


def select_rounds(results: list[EvalResult]) -> list[EvalResult]:
    return [model for model in results if model.name.startswith("round-")]
