"""From examined models to report.json: models, duels, differences, training, and what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pipeline.config import CONTROL, EvaluateConfig
from pipeline.report.analysis.eval_results import (
    SFT,
    EvalResult,
    ModelScores,
    by_prompt,
    is_kind,
    is_other,
)
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    ByPrompt,
    Contest,
    Estimate,
    contest,
    difference,
    estimate,
)
from pipeline.report.analysis.text_metrics import commonest_opening, distinct, other_language

NOT_ASKED = ModelScores({}, frozenset(), 0)


@dataclass(frozen=True)
class Duel:
    """Two models on the same prompts; `a` is the newer one. `scores` are theirs by prompt.

    `orders` is what a judge said of a prompt's answers each time that it was asked (null: no verdict)."""

    a: EvalResult
    b: EvalResult
    judge: str
    contest: Contest
    scores: tuple[ByPrompt, ByPrompt]
    length_adjusted: Estimate | None = None
    flip_rate: float | None = None
    orders: Mapping[str, list[str | None]] = field(default_factory=dict)


def sampling(cfg: EvaluateConfig) -> BootstrapConfig:
    return BootstrapConfig(cfg.level, cfg.resamples, cfg.seed)


def scorers(examined: list[EvalResult], primary: str) -> list[str]:
    """The primary scorer, its kinds, then the others."""
    names = {name for model in examined for name in model.marks}
    return sorted(names, key=lambda name: (name.partition("/")[0] != primary, name.split("/")))


def models(
    examined: list[EvalResult], names: list[str], asked: Mapping[str, str], draw: BootstrapConfig
) -> list[dict[str, Any]]:
    """`asked` are the words that each prompt ends with."""
    return [_model(model, names, asked, draw) for model in examined]


def _model(
    model: EvalResult, names: list[str], asked: Mapping[str, str], draw: BootstrapConfig
) -> dict[str, Any]:
    answers = model.answers
    strange = [*other_language(answers, asked).values()]
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "metrics": {
            name: _metric(model.marks[name], draw) for name in names if name in model.marks
        },
        "tokens": bounds(estimate([*by_prompt(answers, "tokens").values()], draw)),
        "reasoning": bounds(estimate([*by_prompt(answers, "reasoning_tokens").values()], draw)),
        "truncated": _mean(answers, "truncated"),
        "repetition": _mean(answers, "repetition"),
        "distinct": distinct(answers),
        "refusals": _mean(answers, "refusals"),
        "markdown": _mean(answers, "markdown"),
        "opening": commonest_opening(answers),
        "other_language": {
            "share": sum(strange) / len(strange) if strange else None,
            "n": len(strange),
        },
        "kl": {**_with_n(estimate([*model.drift.values()], draw)), "why": model.no_drift},
    }


def _metric(marks: ModelScores, draw: BootstrapConfig) -> dict[str, Any]:
    return {**_with_n(estimate([*marks.means.values()], draw)), "failed": marks.failed}


def _mean(answers: pl.DataFrame, column: str) -> float | None:
    values = by_prompt(answers, column).values()
    return sum(values) / len(values) if values else None


def bounds(known: Estimate) -> dict[str, Any]:
    return {"mean": known.mean, "low": known.low, "high": known.high}


def _with_n(known: Estimate) -> dict[str, Any]:
    return {**bounds(known), "n": known.n}


def differences(
    examined: list[EvalResult], names: list[str], draw: BootstrapConfig
) -> list[dict[str, Any]]:
    """Every model against SFT, paired by prompt, for each scorer that either of them has."""
    sft = named(examined, SFT)
    if sft is None:
        return []
    return [
        difference_of(model, sft, name, draw)
        for model in examined
        if model is not sft
        for name in names
        if name in model.marks or name in sft.marks
    ]


def difference_of(
    model: EvalResult, sft: EvalResult, scorer: str, draw: BootstrapConfig
) -> dict[str, Any]:
    a, b = model.marks.get(scorer, NOT_ASKED), sft.marks.get(scorer, NOT_ASKED)
    found = difference(a.means, b.means, len(a.asked | b.asked), draw)
    facts = {"missing": found.missing, "detectable": found.detectable, "p_value": found.p_value}
    facts |= {"better": found.better, "same": found.same, "worse": found.worse}
    return {
        "model": model.name,
        "scorer": scorer,
        "against": sft.name,
        **_with_n(found.estimate),
        **facts,
    }


def duels(examined: list[EvalResult], names: Sequence[str], draw: BootstrapConfig) -> list[Duel]:
    """Rounds against SFT and the round before, others against SFT and the last round, SFT drawn again against SFT."""
    sft, rounds = named(examined, SFT), trained(examined)
    against_sft = [(model, sft) for model in rounds if sft]
    control = named(examined, CONTROL)
    drawn_again = [(control, sft)] if control and sft else []
    others = [
        (model, old)
        for model in examined
        if is_other(model.name)
        for old in ([sft] if sft else []) + rounds[-1:]
    ]
    contests = [*against_sft, *zip(rounds[1:], rounds, strict=False), *others, *drawn_again]
    return [duel_of(a, b, name, draw) for name in names if not is_kind(name) for a, b in contests]


def duel_of(a: EvalResult, b: EvalResult, scorer: str, draw: BootstrapConfig) -> Duel:
    of_a, of_b = a.marks.get(scorer, NOT_ASKED), b.marks.get(scorer, NOT_ASKED)
    found = contest(of_a.means, of_b.means, len(of_a.asked | of_b.asked), draw)
    return Duel(a, b, scorer, found, (of_a.means, of_b.means))


def duel_row(duel: Duel) -> dict[str, Any]:
    found = duel.contest
    return {
        "a": duel.a.name,
        "b": duel.b.name,
        "judge": duel.judge,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "win_rate": found.rate.mean,
        "low": found.rate.low,
        "high": found.rate.high,
        "p_value": found.p_value,
        **_adjusted(duel.length_adjusted),
        "flip_rate": duel.flip_rate,
        "failed": found.missing,
    }


def _adjusted(known: Estimate | None) -> dict[str, float | None]:
    """The length-adjusted win rate and its interval; a contest of scores has none."""
    rate, low, high = (known.mean, known.low, known.high) if known else (None, None, None)
    return {"length_adjusted": rate, "length_adjusted_low": low, "length_adjusted_high": high}


def verdict_table(fought: list[Duel]) -> pl.DataFrame:
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
        for duel in fought
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


def training(examined: list[EvalResult]) -> list[dict[str, Any]]:
    """Per round the curves that TRL logged; rounds without a log are not listed."""
    return [_curves(model) for model in trained(examined) if model.training]


def _curves(model: EvalResult) -> dict[str, Any]:
    train = [_point(line, "") for line in model.training if "loss" in line]
    dev = [_point(line, "eval_") for line in model.training if "eval_loss" in line]
    steps = max((point["step"] for point in train if point["step"] is not None), default=None)
    closing = {key: _closing(train, key) for key in ("loss", "margin", "accuracy")}
    named = {"round": model.name, "fingerprint": model.fingerprint, "steps": steps}
    return {**named, **closing, "curve": train, "dev": dev}


def _closing(curve: list[dict[str, Any]], key: str) -> float | None:
    """One batch is noise: the mean over the last tenth of what was logged."""
    values = [point[key] for point in curve if point[key] is not None]
    last = values[-max(1, len(values) // 10) :]
    return sum(last) / len(last) if last else None


def _point(line: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        "step": line.get("step"),
        "loss": line.get(f"{prefix}loss"),
        "margin": line.get(f"{prefix}rewards/margins"),
        "accuracy": line.get(f"{prefix}rewards/accuracies"),
    }


def missing(examined: list[EvalResult]) -> list[dict[str, str]]:
    return [{"model": model.name, "what": what} for model in examined for what in model.missing]


def named(examined: Sequence[EvalResult], name: str) -> EvalResult | None:
    return next((model for model in examined if model.name == name), None)


def trained(examined: list[EvalResult]) -> list[EvalResult]:
    return [model for model in examined if model.name.startswith("round-")]
