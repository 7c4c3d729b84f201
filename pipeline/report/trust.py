"""Whether the figures can be believed, in sentences: the control, the gold scorers, calibration and judges' flips.

Where a check was not made, its sentence says how to make it.
"""

from collections.abc import Iterator
from html import escape

from pipeline.report.figures.contests import shown
from pipeline.report.sheet import Row
from pipeline.report.wording import share

ANCHOR = "believed"
NO_GOLD = (
    "No scorer that made no pairs marked this exam: what merely pleases the scorer cannot be told from what is better. "
    "Mark one of exam.score.scorers as gold."
)
CALIBRATE = (
    "make calibrate FILE=verdicts.jsonl says whether",
    "agrees with people more often than “the longer answer wins” does; make label makes the page on which they judge.",
)


def trust(report: Row) -> list[tuple[str, str]]:
    scorer = report["exam"]["scorer"]
    control, proxy = report["control"] or {}, report["proxy"] or {}
    return [
        ("A/A control", control.get("why") or "Not made: exam.control=true draws sft again, for the same table."),
        ("Gold", proxy.get("why") or NO_GOLD),
        ("Calibration", f"{CALIBRATE[0]} {scorer} {CALIBRATE[1]}"),
        ("Flips", " ".join(_flips(report)) or "No judge compared the answers: +duel@exam.duels.NAME=default asks one."),
    ]


def _flips(report: Row) -> Iterator[str]:
    """The worst of each judge's contests."""
    rates: dict[str, float] = {}
    for duel in shown(report):
        if duel["flip_rate"] is not None:
            rates[duel["judge"]] = max(duel["flip_rate"], rates.get(duel["judge"], 0.0))
    for judge, rate in rates.items():
        yield f"{judge} changed its mind with the order of the answers on up to {share(rate)} of prompts."


def trust_html(report: Row) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in trust(report))
    return f'<section id="{ANCHOR}"><h2>Can it be believed?</h2><dl class="facts">{rows}</dl></section>'
