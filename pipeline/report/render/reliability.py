"""Whether the figures can be believed, in sentences: the control, the gold scorers, calibration and judges' flips.

Where a check was not made, its sentence says how to make it.
"""

from collections.abc import Iterator
from html import escape

from pipeline.report.formatting import Row, share
from pipeline.report.render.figures.contests import shown

ANCHOR = "believed"
NO_GOLD = (
    "No scorer of this exam is marked as gold: what merely pleases the scorer that made pairs cannot be told from what "
    "is better. "
)


def trust(report: Row) -> list[tuple[str, str]]:
    scorer = report["exam"]["scorer"]
    control, proxy = report["control"] or {}, report["proxy"] or {}
    calibrate = (
        f"strop calibrate verdicts.jsonl scorer={scorer} says whether {scorer} agrees with people more often"
        " than “the longer answer wins” does; strop label makes the page on which they judge."
    )
    return [
        ("A/A control", control.get("why") or _uncontrolled(report)),
        ("Gold", proxy.get("why") or _unproxied(report)),
        ("Calibration", calibrate),
        ("Flips", " ".join(_flips(report)) or _unflipped(report)),
    ]


def _uncontrolled(report: Row) -> str:
    """Only exams on test have one."""
    split = "" if report["exam"]["split"] == "test" else "exam.split=test with "
    return f"Not made: {split}exam.control=true draws sft again, for the same table."


def _unproxied(report: Row) -> str:
    """Why no gold scorer stands beside the one that made pairs."""
    exam = report["exam"]
    marked = {name for model in report["models"] for name in model["metrics"]}
    gold = [name for name in exam["gold"] if name in marked]
    if exam["training"] is None:
        return "No scorer made pairs here, so no model can have learned to please one."
    if not gold:
        others = [name for name in sorted(marked) if "/" not in name and name != exam["training"]]
        mark = " or ".join(f"exam.score.scorers.{name}.gold=true" for name in others)
        add = "+scorer@exam.score.scorers.NAME=FILE exam.score.scorers.NAME.gold=true"
        return NO_GOLD + (
            f"Mark one that made none as gold: {mark}."
            if others
            else f"Add one that made none: {add}."
        )
    if report["proxy"]:
        return f"The chosen model is not one that pairs of {exam['training']} trained: the table shows the others."
    return (
        f"{', '.join(gold)} made no pairs, and of {exam['training']}, which did, no round has a score here to compare:"
        f" mark exams by it too, +scorer@exam.score.scorers.{exam['training']}=FILE."
    )


def _unflipped(report: Row) -> str:
    scorers = {name for model in report["models"] for name in model["metrics"]}
    judges = dict.fromkeys(
        duel["judge"] for duel in report["duels"] if duel["judge"] not in scorers
    )
    if not judges:
        return "No judge compared the answers: +duel@exam.duels.NAME=default asks one."
    return f"How often the order of the answers changes the verdicts of {', '.join(judges)} is not known."


def _flips(report: Row) -> Iterator[str]:
    """The worst of each judge's contests."""
    rates: dict[str, float] = {}
    for duel in shown(report):
        if duel["flip_rate"] is not None:
            rates[duel["judge"]] = max(duel["flip_rate"], rates.get(duel["judge"], 0.0))
    for judge, rate in rates.items():
        yield f"{judge} changed its mind with the order of the answers on up to {share(rate)} of prompts."


def trust_html(report: Row) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in trust(report)
    )
    return f'<section id="{ANCHOR}"><h2>Can it be believed?</h2><dl class="facts">{rows}</dl></section>'
