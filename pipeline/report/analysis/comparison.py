"""Compares evaluated models of any runs, on their common prompts and by their common scorers.

The first is what the others are compared with. What could not be compared is named.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from pipeline.errors import UserError, pluralize
from pipeline.report.analysis import aggregate
from pipeline.report.analysis.aggregate import ModelDuel
from pipeline.report.analysis.eval_results import EvalResult, ModelScores, read_eval
from pipeline.report.analysis.find_runs import FoundRun, read_verdicts_between
from pipeline.report.analysis.judges import judge_duel
from pipeline.report.analysis.multiple_testing import correct_families
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.analysis.verdict import MIN_PROMPTS, Better
from pipeline.report.formatting import (
    ReportRow,
    format_interval,
    format_level,
    format_number,
    format_signed,
)


@dataclass(frozen=True)
class SharedBasis:
    """What all models share: prompts (id → the text it ends with) and scorers, primary first."""

    asked: dict[str, str]
    scorers: list[str]
    apart: list[str]  # what only some of them have, as sentences

    @property
    def primary(self) -> str | None:
        return self.scorers[0] if self.scorers else None


def compare_runs(
    runs: Sequence[FoundRun], bootstrap: BootstrapConfig
) -> tuple[dict[str, Any], list[EvalResult], pl.DataFrame]:
    """The report, the models as far as they are compared, and who won on which prompt."""
    basis = find_shared_basis(runs)
    results = [read_shared(run, basis) for run in runs]
    first, *others = results
    names = [
        name
        for name in aggregate.list_scorers(results, basis.primary or "")
        if name.partition("/")[0] in basis.scorers
    ]
    gaps = [
        aggregate.describe_difference(model, first, name, bootstrap)
        for model in others
        for name in names
    ]
    met = [
        aggregate.score_duel(model, first, name, bootstrap)
        for name in names
        if "/" not in name
        for model in others
    ]
    for model, run in zip(others, runs[1:], strict=True):
        met += _judge_duels(model, run, first, runs[0], basis, bootstrap)
    differences, duels = correct_families(gaps, [aggregate.describe_duel(duel) for duel in met])
    report = {
        "compared": [
            {"name": run.name, "row": run.row, "model": _store_address(run)} for run in runs
        ],
        "ground": {
            **asdict(basis),
            "asked": len(basis.asked),
            "level": bootstrap.level,
            "chief": basis.primary,
        },
        "models": aggregate.describe_models(results, names, basis.asked, bootstrap),
        "differences": differences,
        "duels": duels,
        "missing": aggregate.list_missing(results),
    }
    return {**report, "verdict": conclude(report)}, results, aggregate.tabulate_verdicts(met)


def _store_address(run: FoundRun) -> str:
    """Where it is in the store: `train/3fa9c1d2e4b5`."""
    path = run.artifacts["model"].path
    return f"{path.parent.name}/{path.name}"


def _judge_duels(
    model: EvalResult,
    run: FoundRun,
    first: EvalResult,
    first_run: FoundRun,
    basis: SharedBasis,
    bootstrap: BootstrapConfig,
) -> list[ModelDuel]:
    """By the judges' verdicts that the store has of these two models' answers to common prompts."""
    common = pl.col("prompt_id").is_in(list(basis.asked))
    return [
        judge_duel(judge, model, first, rows.filter(common), bootstrap)
        for judge, rows in read_verdicts_between(run, first_run)
    ]


# ── what they have in common ────────────────────────────────────────────────


def find_shared_basis(runs: Sequence[FoundRun]) -> SharedBasis:
    prompts = [dict(run.prompts.read().select("prompt_id", "prompt").iter_rows()) for run in runs]
    first = prompts[0]
    shared = [key for key in first if all(own.get(key) == first[key] for own in prompts)]
    counts = ", ".join(f"{run.name} {len(own)}" for run, own in zip(runs, prompts, strict=True))
    if not shared:
        raise UserError(
            f"compare: the models have no prompt in common ({counts}).\n"
            "  Give runs on the same test prompts: the same prompts, prompts.seed"
            " and prompts.split.test."
        )
    everywhere = [
        name
        for name in runs[0].scorers
        if all(_has_same_config(run, runs[0], name) for run in runs)
    ]
    primaries = [run.primary for run in runs if run.primary in everywhere]
    scorers = sorted(everywhere, key=lambda name: (name not in primaries[:1], name))
    notes = []
    if len({*map(len, prompts), len(shared)}) > 1:
        notes.append(f"common to all: {pluralize(len(shared), 'prompt')} ({counts}).")
    notes += [*_list_unshared_scorers(runs, everywhere), *_list_sampling_differences(runs)]
    return SharedBasis({key: first[key][-1]["content"] for key in shared}, scorers, notes)


def _has_same_config(one: FoundRun, other: FoundRun, scorer: str) -> bool:
    return scorer in one.scorers and one.scorers[scorer] == other.scorers[scorer]


def _list_unshared_scorers(runs: Sequence[FoundRun], everywhere: Sequence[str]) -> Iterator[str]:
    names = dict.fromkeys(name for run in runs for name in run.scorers if name not in everywhere)
    for name in names:
        having = [run.name for run in runs if name in run.scorers]
        if len(having) == len(runs):
            yield f"The scorer {name} has different configs, so its scores are not compared."
        else:
            yield f"The scorer {name} scored only {', '.join(having)}."


def _list_sampling_differences(runs: Sequence[FoundRun]) -> Iterator[str]:
    theirs = runs[0].sampling
    for run in runs[1:]:
        ours = run.sampling
        different = [
            f"{name} {ours.get(name)} against {theirs.get(name)}"
            for name in ours
            if ours[name] != theirs.get(name)
        ]
        if different:
            yield f"{run.name} was sampled differently from {runs[0].name}: {', '.join(different)}."


def read_shared(run: FoundRun, basis: SharedBasis) -> EvalResult:
    """Its evaluation, restricted to the common prompts and scorers."""
    own = frozenset(run.prompts.read()["prompt_id"])
    result = read_eval(run.row, run.artifacts, own, basis.primary or "")
    keep = basis.asked.keys()
    scores = {
        name: _restrict_scores(of_scorer, keep)
        for name, of_scorer in result.scores.items()
        if name.partition("/")[0] in basis.scorers
    }
    answers = result.answers.filter(pl.col("prompt_id").is_in(list(keep)))
    kl = {key: value for key, value in result.kl.items() if key in keep}
    return replace(result, name=run.name, answers=answers, scores=scores, kl=kl)


def _restrict_scores(scores: ModelScores, keep: Any) -> ModelScores:
    """Here `failed` counts the common prompts without a score."""
    means = {key: value for key, value in scores.means.items() if key in keep}
    expected = frozenset(key for key in scores.expected if key in keep)
    return ModelScores(means, expected, len(expected) - len(means))


# ── the verdict ─────────────────────────────────────────────────────────────


def conclude(report: ReportRow) -> dict[str, str]:
    """The first against each of the others; the best of these decides `better`."""
    first, *others = [model["name"] for model in report["models"]]
    concluded = {name: _conclude_pair(report, first, name) for name in others}
    signs = [better for better, _ in concluded.values()]
    better: Better = "yes" if "yes" in signs else "unclear" if "unclear" in signs else "no"
    words = {"yes": "better than", "no": "worse than", "unclear": "not clearly different from"}
    parts = [f"{name} is {words[sign]} {first}" for name, (sign, _) in concluded.items()]
    return {
        "better": better,
        "headline": "; ".join(parts) + ".",
        "why": " ".join(why for _, why in concluded.values()),
    }


def _conclude_pair(report: ReportRow, first: str, name: str) -> tuple[Better, str]:
    primary, level = report["ground"]["chief"], report["ground"]["level"]
    key = name, primary
    gap = next((row for row in report["differences"] if (row["model"], row["scorer"]) == key), None)
    if gap is None or not gap["n"]:
        return "unclear", f"No scorer scored both {name} and {first} on a common prompt."
    if gap["n"] < MIN_PROMPTS:
        return "unclear", (
            f"{pluralize(gap['n'], 'common prompt')} with scores {'is' if gap['n'] == 1 else 'are'}"
            f" too few to distinguish {name} from {first}: at least {MIN_PROMPTS} are needed."
        )
    metrics = [
        model["metrics"][primary]
        for chosen in (name, first)
        for model in report["models"]
        if model["name"] == chosen
    ]
    ends = format_interval(gap, format_signed)
    difference = f"{format_signed(gap['mean'])}, {format_level(level)} {ends}."
    if any(metric["n"] != gap["n"] for metric in metrics):  # then their means are of other prompts
        why = (
            f"On the {gap['n']} common prompts where both have a score of {primary}, "
            f"{name} differs from {first} by {difference}"
        )
    else:
        means = [format_number(metric["mean"]) for metric in metrics]
        why = (
            f"On {gap['n']} common prompts {name} scores {means[0]} against {means[1]} of {first}"
            f" by {primary}: a difference of {difference}"
        )
    return ("yes" if gap["low"] > 0 else "no" if gap["high"] < 0 else "unclear"), why
