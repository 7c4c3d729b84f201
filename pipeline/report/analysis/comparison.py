"""Examined models of any runs, on the prompts that all of them were asked and by the scorers that marked them all.

The first is what the others are held against. What could not be compared is named, and never compared silently.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from pipeline.errors import UserError, pluralize
from pipeline.report.analysis import aggregate
from pipeline.report.analysis.aggregate import Duel
from pipeline.report.analysis.eval_results import EvalResult, ModelScores, read_exam
from pipeline.report.analysis.find_runs import FoundRun, verdicts_between
from pipeline.report.analysis.judges import duel
from pipeline.report.analysis.multiple_testing import corrected
from pipeline.report.analysis.statistics import BootstrapConfig
from pipeline.report.analysis.verdict import LEAST_PROMPTS, Better, Row
from pipeline.report.formatting import interval, level_text, number, signed


@dataclass(frozen=True)
class Ground:
    """What all have in common: prompts with the words that each ends with, and scorers, the chief one first."""

    asked: dict[str, str]
    scorers: list[str]
    apart: list[str]  # what only some have, said in words

    @property
    def chief(self) -> str | None:
        return self.scorers[0] if self.scorers else None


def compared(
    found: Sequence[FoundRun], draw: BootstrapConfig
) -> tuple[dict[str, Any], list[EvalResult], pl.DataFrame]:
    """The report, the models as far as they are compared, and who won on which prompt."""
    ground = common_ground(found)
    examined = [read(each, ground) for each in found]
    first, *others = examined
    names = [
        name
        for name in aggregate.scorers(examined, ground.chief or "")
        if name.partition("/")[0] in ground.scorers
    ]
    gaps = [aggregate.difference_of(model, first, name, draw) for model in others for name in names]
    fought = [
        aggregate.duel_of(model, first, name, draw)
        for name in names
        if "/" not in name
        for model in others
    ]
    for model, of in zip(others, found[1:], strict=True):
        fought += _judged(model, of, first, found[0], ground, draw)
    differences, duels = corrected(gaps, [aggregate.duel_row(one) for one in fought])
    report = {
        "compared": [
            {"name": each.name, "row": each.row, "model": _address(each)} for each in found
        ],
        "ground": {
            **asdict(ground),
            "asked": len(ground.asked),
            "level": draw.level,
            "chief": ground.chief,
        },
        "models": aggregate.models(examined, names, ground.asked, draw),
        "differences": differences,
        "duels": duels,
        "missing": aggregate.missing(examined),
    }
    return {**report, "verdict": verdict(report)}, examined, aggregate.verdict_table(fought)


def _address(found: FoundRun) -> str:
    """Where the store has it: `train/3fa9c1d2e4b5`."""
    path = found.exam["model"].path
    return f"{path.parent.name}/{path.name}"


def _judged(
    model: EvalResult,
    of: FoundRun,
    first: EvalResult,
    beside: FoundRun,
    ground: Ground,
    draw: BootstrapConfig,
) -> list[Duel]:
    """What judges said already: of these two models' answers, on common prompts."""
    told = verdicts_between(of, beside)
    return [
        duel(judge, model, first, rows.filter(pl.col("prompt_id").is_in(list(ground.asked))), draw)
        for judge, rows in told
    ]


# ── what they have in common ──────────────────────────────────────────────────────────────────────────────────────


def common_ground(found: Sequence[FoundRun]) -> Ground:
    asked = [dict(each.prompts.read().select("prompt_id", "prompt").iter_rows()) for each in found]
    shared = [key for key in asked[0] if all(of.get(key) == asked[0][key] for of in asked)]
    counts = ", ".join(f"{each.name} {len(of)}" for each, of in zip(found, asked, strict=True))
    if not shared:
        raise UserError(
            f"compare: no prompt was asked of all of them ({counts}).\n"
            "  Give runs on the same test prompts: the same prompts, prompts.seed and prompts.split.test."
        )
    everywhere = [
        name for name in found[0].scorers if all(_same(each, found[0], name) for each in found)
    ]
    chiefs = [each.chief for each in found if each.chief in everywhere]
    scorers = sorted(everywhere, key=lambda name: (name not in chiefs[:1], name))
    said = (
        [f"common to all: {pluralize(len(shared), 'prompt')} ({counts})."]
        if len({*map(len, asked), len(shared)}) > 1
        else []
    )
    said += [*_apart(found, everywhere), *_drawn_otherwise(found)]
    return Ground({key: asked[0][key][-1]["content"] for key in shared}, scorers, said)


def _same(one: FoundRun, other: FoundRun, scorer: str) -> bool:
    return scorer in one.scorers and one.scorers[scorer] == other.scorers[scorer]


def _apart(found: Sequence[FoundRun], everywhere: Sequence[str]) -> Iterator[str]:
    names = dict.fromkeys(name for each in found for name in each.scorers if name not in everywhere)
    for name in names:
        having = [each.name for each in found if name in each.scorers]
        if len(having) == len(found):
            yield f"The scorer {name} is configured otherwise in each, so its marks are not compared."
        else:
            yield f"The scorer {name} marked {', '.join(having)} alone."


def _drawn_otherwise(found: Sequence[FoundRun]) -> Iterator[str]:
    for each in found[1:]:
        ours, theirs = each.setting, found[0].setting
        if moved := [
            f"{name} {ours.get(name)} against {theirs.get(name)}"
            for name in ours
            if ours[name] != theirs.get(name)
        ]:
            yield f"{each.name} was drawn otherwise than {found[0].name}: {', '.join(moved)}."


def read(found: FoundRun, ground: Ground) -> EvalResult:
    """Its exam, of which only the common prompts count."""
    own = frozenset(found.prompts.read()["prompt_id"])
    whole = read_exam(found.row, found.exam, own, ground.chief or "")
    keep = ground.asked.keys()
    marks = {
        name: _on(mark, keep)
        for name, mark in whole.marks.items()
        if name.partition("/")[0] in ground.scorers
    }
    answers = whole.answers.filter(pl.col("prompt_id").is_in(list(keep)))
    drift = {key: value for key, value in whole.drift.items() if key in keep}
    return replace(whole, name=found.name, answers=answers, marks=marks, drift=drift)


def _on(marks: ModelScores, keep: Any) -> ModelScores:
    """`failed` are here the common prompts without a mark."""
    means = {key: value for key, value in marks.means.items() if key in keep}
    asked = frozenset(key for key in marks.asked if key in keep)
    return ModelScores(means, asked, len(asked) - len(means))


# ── what is said of it ────────────────────────────────────────────────────────────────────────────────────────────


def verdict(report: Row) -> dict[str, str]:
    """Of the first against each of the others; with several the best of them decides the sign."""
    first, *others = [model["name"] for model in report["models"]]
    told = {name: _of(report, first, name) for name in others}
    signs = [better for better, _ in told.values()]
    better: Better = "yes" if "yes" in signs else "unclear" if "unclear" in signs else "no"
    words = {"yes": "better than", "no": "worse than", "unclear": "not clearly different from"}
    headline = (
        "; ".join(f"{name} is {words[sign]} {first}" for name, (sign, _) in told.items()) + "."
    )
    return {
        "better": better,
        "headline": headline,
        "why": " ".join(why for _, why in told.values()),
    }


def _of(report: Row, first: str, name: str) -> tuple[Better, str]:
    ground = report["ground"]
    gap = next(
        (
            row
            for row in report["differences"]
            if (row["model"], row["scorer"]) == (name, ground["chief"])
        ),
        None,
    )
    if gap is None or not gap["n"]:
        return "unclear", f"No scorer marked both {name} and {first} on a common prompt."
    if gap["n"] < LEAST_PROMPTS:
        return (
            "unclear",
            f"{gap['n']} common prompts with scores are too few to tell {name} from {first}: at least {LEAST_PROMPTS}.",
        )
    marks = {
        of["name"]: of["metrics"][ground["chief"]]
        for of in report["models"]
        if of["name"] in (first, name)
    }
    told = f"{signed(gap['mean'])}, {level_text(ground['level'])} {interval(gap, signed)}."
    on = f"On {gap['n']} common prompts"
    if any(marks[of]["n"] != gap["n"] for of in (name, first)):  # whose means are of other prompts
        why = f"{on} with a score of {ground['chief']} for both, {name} differs from {first} by {told}"
    else:
        means = [number(marks[of]["mean"]) for of in (name, first)]
        why = f"{on} {name} scores {means[0]} against {means[1]} of {first} by {ground['chief']}: a difference of {told}"
    return ("yes" if gap["low"] > 0 else "no" if gap["high"] < 0 else "unclear"), why
