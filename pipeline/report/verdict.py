"""Is the chosen model better than SFT? A sentence with figures; where it is not, one naming the knob to turn next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.report.wording import interval, level_text, number, signed

LEAST_PROMPTS = 30
# From here on the policy has left what SFT knows; below the other bound it has hardly learned.
FAR_NATS, NEAR_NATS = 5.0, 0.1

UNCHANGED = (
    "Its weights are those that its training started from, byte for byte: no step changed them. "
    "Give it more steps (more pairs, a smaller train.batch, more train.epochs) or a higher train.learning_rate; "
    "train.dtype=float32 rounds no small step away."
)

Better = Literal["yes", "no", "unclear"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """What the verdict rests on; `chosen` is None when the chosen model was not examined.

    `training` made the pairs, the `gold` scorers made none. `unchanged`: its training left its weights as they were.
    """

    split: str
    prompts: int
    scorer: str
    level: float
    chosen: str | None
    training: str | None = None
    gold: tuple[str, ...] = ()
    unchanged: bool = False


def verdict(question: Question, models: Sequence[Row], differences: Sequence[Row]) -> dict[str, str]:
    better, why = _verdict(question, models, differences)
    return {"better": better, "why": why}


def _verdict(question: Question, models: Sequence[Row], differences: Sequence[Row]) -> tuple[Better, str]:
    if question.chosen is None:
        return "unclear", "The chosen model was not examined, so nothing can be said about it."
    if question.chosen == "sft":
        return "no", f"The chosen model is sft itself: no trained model was preferred to it.{_after_none(models)}"
    gap = next(
        (row for row in differences if (row["model"], row["scorer"]) == (question.chosen, question.scorer)), None
    )
    if gap is None or not gap["n"]:
        return (
            "unclear",
            f"No {question.split} prompt has a score of {question.scorer} for both {question.chosen} and sft:"
            " see what is missing.",
        )
    if gap["n"] < LEAST_PROMPTS:
        return "unclear", _too_few(question, gap)
    return _by_interval(question, gap, {model["name"]: model for model in models}, _others(question, differences))


def _others(question: Question, differences: Sequence[Row]) -> list[Row]:
    """What the other scorers, without their kinds, say of the chosen model."""
    told = [row for row in differences if row["model"] == question.chosen and row["n"] >= LEAST_PROMPTS]
    return [row for row in told if row["scorer"] != question.scorer and "/" not in row["scorer"]]


def _by_interval(question: Question, gap: Row, models: dict[str, Row], others: Sequence[Row]) -> tuple[Better, str]:
    chosen = models[question.chosen or ""]
    means = [number(model["metrics"][question.scorer]["mean"]) for model in (chosen, models["sft"])]
    figures = (
        f"On {gap['n']} {question.split} prompts {question.chosen} scores {means[0]} against sft's {means[1]} "
        f"by {question.scorer}: a difference of {signed(gap['mean'])},"
        f" {level_text(question.level)} {interval(gap, signed)}."
    )
    if gap["low"] > 0 and (flat := _flat_gold(question, others)):
        return "unclear", f"{figures} {_proxy_alone(question, flat)}"
    if gap["low"] > 0:
        return "yes", " ".join([figures, *(_does_not_follow(row) for row in others if row["low"] <= 0)])
    word: Better = "no" if gap["high"] < 0 else "unclear"
    if question.unchanged:
        return word, f"{figures} {UNCHANGED}"
    if pleased := [row for row in others if row["low"] > 0]:
        return word, f"{figures} {_over_optimised(question, pleased[0])}"
    return word, f"{figures} {_after_no(chosen) if word == 'no' else _after_unclear(question, gap, chosen)}"


def _flat_gold(question: Question, others: Sequence[Row]) -> Row | None:
    """A gold scorer that does not see what the scorer that made the pairs sees."""
    if question.scorer != question.training:
        return None
    return next((row for row in others if row["scorer"] in question.gold and row["low"] <= 0), None)


def _proxy_alone(question: Question, gold: Row) -> str:
    return (
        f"But {question.scorer} made the pairs, and {gold['scorer']}, which made none, does not follow: "
        f"{signed(gold['mean'])}, {interval(gold, signed)}. It learned to please {question.scorer}. "
        f"{hold_back(question.chosen)}, or mend {question.scorer}."
    )


def hold_back(chosen: str | None) -> str:
    """What keeps a model nearer to SFT; before the first round there is none to take."""
    nearer = "lower train.learning_rate or raise train.beta"
    return nearer.capitalize() if chosen == "round-1" else f"Take an earlier round, {nearer}"


def _does_not_follow(row: Row) -> str:
    return f"By {row['scorer']} it is not clearly better: {signed(row['mean'])}, {interval(row, signed)}."


def _over_optimised(question: Question, row: Row) -> str:
    return (
        f"By {row['scorer']} it rose by {signed(row['mean'])}, {interval(row, signed)}: it learned to please "
        f"{row['scorer']}, and {question.scorer} does not follow. "
        f"{hold_back(question.chosen)}, or mend {row['scorer']}."
    )


def _too_few(question: Question, gap: Row) -> str:
    prompts = f"{gap['n']} {question.split} prompt{'s are' if gap['n'] != 1 else ' is'}"
    enough = question.prompts >= LEAST_PROMPTS
    remedy = "The others have no score: see what is missing." if enough else f"Raise prompts.split.{question.split}."
    return (
        f"{prompts} too few to tell: {question.chosen} differs from sft by {signed(gap['mean'])} in {question.scorer}, "
        f"and a verdict needs at least {LEAST_PROMPTS}. {remedy}"
    )


def _after_none(models: Sequence[Row]) -> str:
    """By the last of those that were passed by."""
    rounds = [model for model in models if model["name"].startswith("round-")]
    if not rounds:
        return ""
    name, nats = rounds[-1]["name"], rounds[-1]["kl"]["mean"]
    return f" {_hardly(name, nats) if nats is not None and nats < NEAR_NATS else _after_no(rounds[-1], name)}"


def _after_no(model: Row, who: str = "It") -> str:
    nats = model["kl"]["mean"]
    if nats is not None and nats > FAR_NATS:
        return f"{who} moved {number(nats, 1)} nats away from sft: lower train.learning_rate or raise train.beta."
    return (
        "Too large a step or misleading pairs are likely: lower train.learning_rate or raise pair.filters.min_margin."
    )


def _after_unclear(question: Question, gap: Row, chosen: Row) -> str:
    nats = chosen["kl"]["mean"]
    if nats is not None and nats < NEAR_NATS:
        return _hardly("It", nats)
    remedy = f"examine more (prompts.split.{question.split}) or train further (rounds, train.learning_rate)."
    if gap["detectable"] is None:
        return f"Every prompt's difference is the same: {remedy}"
    return f"So many prompts can detect a difference of {number(gap['detectable'])}: {remedy}"


def _hardly(who: str, nats: float) -> str:
    return f"{who} hardly moved from sft ({number(nats, 2)} nats): raise train.learning_rate or train.epochs."


def _gained(report: Row) -> bool:
    asked = report["exam"]["chosen"], report["exam"]["scorer"]
    return any((row["model"], row["scorer"]) == asked and (row["low"] or 0) > 0 for row in report["differences"])


def headline(report: Row) -> str:
    """The verdict in as few words as it takes."""
    chosen = report["exam"]["chosen"] or "the chosen model"
    if report["proxy"] and report["proxy"]["over_optimised"]:
        return f"{chosen} learned to please {report['proxy']['training']}; the gold score does not follow."
    lost, unknown = ([row["name"] for row in report["retention"] if row["state"] == s] for s in ("lost", "unknown"))
    if lost:
        return f"{chosen} lost {', '.join(lost)}."
    if unknown and report["verdict"]["better"] == "unclear" and _gained(report):
        return f"{chosen} scores better than sft; whether {', '.join(unknown)} was kept is not known."
    match report["verdict"]["better"]:
        case "yes":
            return f"{chosen} is better than sft."
        case "no":
            return "No trained model is better than sft." if chosen == "sft" else f"{chosen} is worse than sft."
        case _:
            return f"It is unclear whether {chosen} is better than sft."
