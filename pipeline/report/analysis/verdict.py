"""Is the chosen model better than SFT? A sentence with figures; where it is not, one naming the knob to turn next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.report.analysis.statistics import TIE
from pipeline.report.formatting import interval, level_text, number, signed

LEAST_PROMPTS = 30
# From here on the policy has left what SFT knows; below the other bound it has hardly learned.
FAR_NATS, NEAR_NATS = 5.0, 0.1

UNCHANGED = (
    "{} weights are those that its training started from, byte for byte: no step changed them. "
    "Give it more steps (more pairs, a smaller train.batch, more train.epochs) or a higher train.learning_rate; "
    "train.dtype=float32 rounds no small step away."
)

Better = Literal["yes", "no", "unclear"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What the verdict rests on; `chosen` is None when the chosen model was not examined.

    `training` is the scorer that made pairs, None where no scorer did; the `gold` scorers made none.
    `unchanged`: its training left its weights as they were; where sft was chosen, that of the last round did.
    """

    split: str
    prompts: int
    scorer: str
    level: float
    chosen: str | None
    training: str | None = None
    gold: tuple[str, ...] = ()
    unchanged: bool = False


def verdict(
    question: Question, models: Sequence[Row], differences: Sequence[Row]
) -> dict[str, str]:
    better, why = _verdict(question, models, differences)
    return {"better": better, "why": why}


def _verdict(
    question: Question, models: Sequence[Row], differences: Sequence[Row]
) -> tuple[Better, str]:
    if question.chosen is None:
        return "unclear", "The chosen model was not examined, so nothing can be said about it."
    if question.chosen == "sft":
        return (
            "no",
            "The chosen model is sft itself: no trained model was preferred to it."
            f"{_after_none(question, models, differences)}",
        )
    gap = next(
        (
            row
            for row in differences
            if (row["model"], row["scorer"]) == (question.chosen, question.scorer)
        ),
        None,
    )
    if gap is None or not gap["n"]:
        return (
            "unclear",
            f"No {question.split} prompt has a score of {question.scorer} for both {question.chosen} and sft:"
            " see what is missing, and in the table of models how many scores failed.",
        )
    if gap["n"] < LEAST_PROMPTS:
        return "unclear", _too_few(question, gap)
    return _by_interval(
        question, gap, {model["name"]: model for model in models}, _others(question, differences)
    )


def _others(question: Question, differences: Sequence[Row]) -> list[Row]:
    """What the other scorers, without their kinds, say of the chosen model."""
    told = [
        row for row in differences if row["model"] == question.chosen and row["n"] >= LEAST_PROMPTS
    ]
    return [row for row in told if row["scorer"] != question.scorer and "/" not in row["scorer"]]


def _by_interval(
    question: Question, gap: Row, models: dict[str, Row], others: Sequence[Row]
) -> tuple[Better, str]:
    chosen = models[question.chosen or ""]
    figures = _figures(question, gap, chosen, models["sft"])
    if gap["low"] > 0 and (flat := _flat_gold(question, others)):
        return "unclear", f"{figures} {_proxy_alone(question, flat)}"
    if gap["low"] > 0:
        return "yes", " ".join(
            [figures, *(_does_not_follow(row) for row in others if row["low"] <= 0)]
        )
    word: Better = "no" if gap["high"] < 0 else "unclear"
    if question.unchanged:
        return word, f"{figures} {UNCHANGED.format('Its')}"
    risen = [row for row in others if row["low"] > 0]
    if pleased := [row for row in risen if row["scorer"] == question.training]:
        return word, f"{figures} {_over_optimised(question, gap, pleased[0])}"
    after = _after_no(question, chosen) if word == "no" else _after_unclear(question, gap, chosen)
    return word, " ".join([figures, *(f"{_rose(row)}." for row in risen), after])


def _figures(question: Question, gap: Row, chosen: Row, sft: Row) -> str:
    """A model's mean is over all of its scored prompts: it is no part of this sentence where the other has others."""
    on = f"On {gap['n']} {question.split} prompts"
    told = f"{signed(gap['mean'])}, {level_text(question.level)} {interval(gap, signed)}."
    marks = [model["metrics"][question.scorer] for model in (chosen, sft)]
    if any(mark["n"] != gap["n"] for mark in marks):
        return f"{on} that both have a score of {question.scorer} for, {question.chosen} differs from sft by {told}"
    means = [number(mark["mean"]) for mark in marks]
    return (
        f"{on} {question.chosen} scores {means[0]} against sft's {means[1]} by {question.scorer}:"
        f" a difference of {told}"
    )


def _flat_gold(question: Question, others: Sequence[Row]) -> Row | None:
    """A gold scorer that does not see what the scorer that made pairs sees."""
    if question.scorer != question.training:
        return None
    return next((row for row in others if row["scorer"] in question.gold and row["low"] <= 0), None)


def _proxy_alone(question: Question, gold: Row) -> str:
    return (
        f"But {question.scorer} made pairs, and {gold['scorer']}, which made none, {follows(gold)}: "
        f"{signed(gold['mean'])}, {interval(gold, signed)}. It {pleases(question.scorer, gold)}. "
        f"{hold_back(question.chosen)}, or mend {question.scorer}."
    )


def follows(gold: Row) -> str:
    """How a scorer that made no pairs stands to a gain of the one that made them, where it does not surely rise."""
    return "does not follow" if (gold["mean"] or 0) <= 0 else "does not clearly follow"


def pleases(training: str, gold: Row) -> str:
    """A rise that is merely too small to be sure of may be one all the same."""
    return f"{'learned' if (gold['mean'] or 0) <= 0 else 'may have learned'} to please {training}"


NEARER = "lower train.learning_rate or, where a reference holds it, raise train.beta"


def hold_back(chosen: str | None) -> str:
    """What keeps a model nearer to SFT; before the first round there is none to take."""
    return (
        f"{NEARER[0].upper()}{NEARER[1:]}"
        if chosen == "round-1"
        else f"Take an earlier round, {NEARER}"
    )


def _does_not_follow(row: Row) -> str:
    word = "worse" if row["high"] < 0 else "not clearly better"
    return f"By {row['scorer']} it is {word}: {signed(row['mean'])}, {interval(row, signed)}."


def _rose(row: Row) -> str:
    return f"By {row['scorer']} it rose by {signed(row['mean'])}, {interval(row, signed)}"


def _over_optimised(question: Question, gap: Row, row: Row) -> str:
    return (
        f"{_rose(row)}: it {pleases(row['scorer'], gap)}, which made pairs,"
        f" and {question.scorer} {follows(gap)}. {hold_back(question.chosen)}, or mend {row['scorer']}."
    )


def _too_few(question: Question, gap: Row) -> str:
    prompts = f"{gap['n']} {question.split} prompt{'s are' if gap['n'] != 1 else ' is'}"
    enough = question.prompts >= LEAST_PROMPTS
    remedy = (
        "The others lack a score by one of the two: see what is missing, and how many scores failed."
        if enough
        else f"Give more {question.split} prompts: prompts.split.{question.split}."
    )
    return (
        f"{prompts} too few to tell: {question.chosen} differs from sft by {signed(gap['mean'])} in {question.scorer}, "
        f"and a verdict needs at least {LEAST_PROMPTS}. {remedy}"
    )


def _after_none(question: Question, models: Sequence[Row], differences: Sequence[Row]) -> str:
    """By the last of those that were passed by; one that is surely better here was passed by for another reason."""
    rounds = [model for model in models if model["name"].startswith("round-")]
    if not rounds:
        return ""
    name, nats = rounds[-1]["name"], rounds[-1]["kl"]["mean"]
    told = {
        row["model"]: row
        for row in differences
        if row["scorer"] == question.scorer and row["n"] >= LEAST_PROMPTS
    }
    better = [
        told[model["name"]]
        for model in rounds
        if model["name"] in told and told[model["name"]]["low"] > 0
    ]
    last = told.get(name)
    if question.unchanged:
        return f" {UNCHANGED.format(f'The {name} model’s')}"
    if _near(nats):
        return f" {_hardly(name, nats)}"
    if _far(nats) or (last and last["high"] < 0 and not better):
        return f" {_after_no(question, rounds[-1], name)}"
    if better:
        return (
            f" Yet by {question.scorer} {better[-1]['model']} scores better than sft on {question.split}:"
            f" {signed(better[-1]['mean'])}, {interval(better[-1], signed)}."
            " See why the gate passed it by: gate.scorer, gate.min_gain, gate.kl_budget."
        )
    clearer = "give clearer pairs (pair.filters.min_margin), " if question.training else ""
    return (
        f" {_not_told_apart(question, name, last)} Train further (rounds, train.learning_rate), {clearer}"
        "or ask less of the gate (gate.min_gain)."
    )


def _not_told_apart(question: Question, name: str, gap: Row | None) -> str:
    if gap is None:
        return f"Too few {question.split} prompts have a score of {question.scorer} to tell {name} from sft."
    told = f"{signed(gap['mean'])}, {interval(gap, signed)}"
    return f"By {question.scorer} {name} is not told apart from sft on {question.split} either: {told}."


def _near(nats: float | None) -> bool:
    """An estimate may fall below zero: as far below as this it is noise, and says nothing."""
    return nats is not None and abs(nats) < NEAR_NATS


def _far(nats: float | None) -> bool:
    return nats is not None and nats > FAR_NATS


def _clearer_pairs(question: Question) -> str:
    """Pairs that no scorer made have no margin to raise."""
    if question.training is None:
        return "Correct them: strop edit writes them to a file, which pair.edits=FILE takes"
    return "Raise pair.filters.min_margin, or mark pairs by another pair.scorer"


def _after_no(question: Question, model: Row, who: str = "It") -> str:
    nats = model["kl"]["mean"]
    if _far(nats):
        return f"{who} moved {number(nats, 1)} nats away from sft: {NEARER}."
    if _near(nats):
        return (
            f"{who} moved only {number(nats, 2)} nats away from sft: misleading pairs are likelier than too large a"
            f" step. {_clearer_pairs(question)}."
        )
    mend = (
        "raise pair.filters.min_margin"
        if question.training
        else "correct the pairs (strop edit, pair.edits)"
    )
    return f"Too large a step or misleading pairs are likely: lower train.learning_rate or {mend}."


def _after_unclear(question: Question, gap: Row, chosen: Row) -> str:
    nats = chosen["kl"]["mean"]
    if _near(nats):
        return _hardly("It", nats)
    if is_flat(gap):
        return (
            f"{question.scorer} gives both the same score on every one of them: give a scorer that tells answers apart"
            " (evaluate.scorer), or train further (rounds, train.learning_rate)."
        )
    return (
        f"So many prompts can detect a difference of {detectable(gap)}: "
        f"examine more (prompts.split.{question.split}) or train further (rounds, train.learning_rate)."
    )


def is_flat(gap: Row) -> bool:
    """Whether all paired differences are the same, so that nothing is known of how small a one could be seen."""
    return (gap["detectable"] or 0.0) <= TIE


def detectable(gap: Row) -> str:
    return number(gap["detectable"])


def _hardly(who: str, nats: float) -> str:
    return f"{who} hardly moved from sft ({number(nats, 2)} nats): raise train.learning_rate or train.epochs."


def _gained(report: Row) -> bool:
    """By as many prompts as a verdict needs."""
    asked = report["exam"]["chosen"], report["exam"]["scorer"]
    own = [row for row in report["differences"] if (row["model"], row["scorer"]) == asked]
    return any(row["n"] >= LEAST_PROMPTS and row["low"] > 0 for row in own)


def _flat_of(proxy: Row, chosen: str) -> Row:
    """The gold scorer that follows least."""
    told = [
        row["gold"] for row in proxy["rounds"] if row["model"] == chosen and row["over_optimised"]
    ]
    return min(told, key=lambda gold: gold["mean"])


def headline(report: Row) -> str:
    """The verdict in as few words as it takes."""
    chosen = report["exam"]["chosen"] or "the chosen model"
    if (
        report["proxy"]
        and report["proxy"]["over_optimised"]
        and report["verdict"]["better"] != "yes"
    ):
        training, gold = report["proxy"]["training"], _flat_of(report["proxy"], chosen)
        return f"{chosen} {pleases(training, gold)}; the gold score {follows(gold)}."
    lost, unknown = (
        [row["name"] for row in report["retention"] if row["state"] == s]
        for s in ("lost", "unknown")
    )
    if lost:
        return f"{chosen} lost {', '.join(lost)}."
    if unknown and report["verdict"]["better"] == "unclear" and _gained(report):
        return (
            f"{chosen} scores better than sft; whether {', '.join(unknown)} was kept is not known."
        )
    match report["verdict"]["better"]:
        case "yes":
            return f"{chosen} is better than sft."
        case "no":
            return (
                "No trained model was preferred to sft."
                if chosen == "sft"
                else f"{chosen} is worse than sft."
            )
        case _:
            return f"It is unclear whether {chosen} is better than sft."
