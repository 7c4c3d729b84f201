"""How reliable the figures are: the control, the gold scorers, calibration and judges' flips.

Where a check was not made, its sentence says how to make it.
"""

from collections.abc import Iterator

from pipeline.report.formatting import ReportRow, format_share
from pipeline.report.render.figures.contests import select_contests

ANCHOR, TITLE = "reliability", "How reliable is this result?"
NO_GOLD = (
    "No scorer here is gold, so a model that merely pleases the scorer that made the pairs "
    "cannot be distinguished from a better one. "
)


def explain_reliability(report: ReportRow) -> list[tuple[str, str]]:
    scorer = report["evaluation"]["scorer"]
    control, proxy = report["control"] or {}, report["proxy"] or {}
    calibrate = (
        f"If {scorer} is one of score.scorers and reads texts alone, no columns of the prompts:"
        f" strop calibrate verdicts.jsonl scorer={scorer}, with this run's recipe and overrides,"
        " shows whether it agrees with human verdicts more often than “the longer answer wins”"
        " does; strop label makes the page for giving those verdicts."
    )
    return [
        ("A/A control", control.get("why") or _explain_no_control(report)),
        ("Gold", proxy.get("why") or _explain_no_gold(report)),
        ("Calibration", calibrate),
        ("Flips", " ".join(_describe_flips(report)) or _explain_no_flips(report)),
    ]


def _explain_no_control(report: ReportRow) -> str:
    """Only evaluations on test have a control."""
    split = "" if report["evaluation"]["split"] == "test" else "evaluate.split=test with "
    return f"Not made: {split}evaluate.control=true samples sft again, for the same table."


def _explain_no_gold(report: ReportRow) -> str:
    """Why no gold scorer checks the one that made the pairs."""
    evaluation = report["evaluation"]
    training = evaluation["training"]
    scorers = {name for model in report["models"] for name in model["metrics"]}
    gold = [name for name in evaluation["gold"] if name in scorers]
    if training is None:
        return "No scorer made pairs here, so no model can have learned to please one."
    if not gold:
        makers = {training, *evaluation.get("members", ())}
        return NO_GOLD + _advise_gold(sorted(scorers - makers))
    if report["proxy"]:
        return (
            f"The chosen model was not trained on pairs of {training}: the table shows the others."
        )
    return (
        f"{', '.join(gold)} made no pairs, and of {training}, which did, no round has a score here"
        f" to compare: score evaluations by it too, +scorer@evaluate.score.scorers.{training}=FILE."
    )


def _advise_gold(scorers: list[str]) -> str:
    others = [name for name in scorers if "/" not in name]
    if not others:
        return (
            "Add one that made none: +scorer@evaluate.score.scorers.NAME=FILE"
            " evaluate.score.scorers.NAME.gold=true."
        )
    settings = " or ".join(f"evaluate.score.scorers.{name}.gold=true" for name in others)
    return f"Make one that made none gold: {settings}."


def _explain_no_flips(report: ReportRow) -> str:
    scorers = {name for model in report["models"] for name in model["metrics"]}
    judges = dict.fromkeys(
        duel["judge"] for duel in report["duels"] if duel["judge"] not in scorers
    )
    if not judges:
        return "No judge compared the answers: +duel@evaluate.duels.NAME=default asks one."
    return (
        f"How often the order of the answers changes the verdicts of {', '.join(judges)}"
        " is not known."
    )


def _describe_flips(report: ReportRow) -> Iterator[str]:
    """The worst of each judge's contests."""
    rates: dict[str, float] = {}
    for duel in select_contests(report):
        if duel["flip_rate"] is not None:
            rates[duel["judge"]] = max(duel["flip_rate"], rates.get(duel["judge"], 0.0))
    for judge, rate in rates.items():
        yield (
            f"{judge} changed its verdict with the order of the answers"
            f" on up to {format_share(rate)} of the prompts with two different answers."
        )
