"""What the figures of a report are held against: SFT drawn again, a scorer that made no pairs, the best of n.

All are read from the rows of report.json; each is None where the exam has no such row.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import BEST_OF_PREFIX, CONTROL
from pipeline.report.analysis.verdict import LEAST_PROMPTS, Question, Row, pleases
from pipeline.report.formatting import interval, p_value, share, signed


def control(
    question: Question, differences: Sequence[Row], duels: Sequence[Row]
) -> dict[str, Any] | None:
    """SFT against itself: whatever finds a difference here measures noise."""
    own = [
        *(r for r in differences if r["model"] == CONTROL),
        *(r for r in duels if r["a"] == CONTROL),
    ]
    if not own:
        return None
    tested = [row for row in own if row["p_holm"] is not None]
    found = [row for row in tested if row["p_holm"] < 1 - question.level]
    return {
        "stable": not found if tested else None,
        "tests": len(tested),
        "why": _of_control(tested, found, question.level),
    }


def _of_control(tested: Sequence[Row], found: Sequence[Row], level: float) -> str:
    if not tested:
        return "Drawn again, sft could not be compared with itself: its answers or its scores are missing."
    if not found:
        least = min(row["p_holm"] for row in tested)
        tests = "the one test" if len(tested) == 1 else f"any of {len(tested)} tests"
        return (
            f"Drawn again, sft is not told apart from itself by {tests} (least p {p_value(least)})."
        )
    told = "; ".join(_test(row) for row in found)
    return (
        f"Drawn again, sft differs from itself {told}. The machinery or the scorer is unstable, unless chance did it,"
        f" as in {share(1 - level)} of runs: believe no difference of this size before the cause is found."
    )


def _test(row: Row) -> str:
    p = p_value(row["p_holm"])
    if "judge" in row:
        return f"in {row['judge']}'s contests (win rate {share(row['win_rate'])}, p {p})"
    return f"by {row['scorer']} ({signed(row['mean'])}, {interval(row, signed)}, p {p})"


def proxy(
    question: Question, models: Sequence[Row], differences: Sequence[Row]
) -> dict[str, Any] | None:
    """The gain by the scorer that made pairs beside the gain by each that made none, round by round."""
    if question.training is None:
        return None
    gaps = {(row["model"], row["scorer"]): row for row in differences if row["n"]}
    rounds = [
        {
            "model": model["name"],
            "scorer": gold,
            "proxy": _gain(gaps[model["name"], question.training]),
            "gold": _gain(gaps[model["name"], gold]),
            "kl": model["kl"]["mean"],
            "over_optimised": over_optimised(
                gaps[model["name"], question.training], gaps[model["name"], gold]
            ),
        }
        for model in models
        for gold in question.gold
        if model["name"].startswith("round-")
        and {(model["name"], question.training), (model["name"], gold)} <= gaps.keys()
    ]
    if not rounds:
        return None
    told = [row for row in rounds if row["model"] == question.chosen]
    return {
        "training": question.training,
        "over_optimised": any(row["over_optimised"] for row in told),
        "why": " ".join(_of_proxy(question, row) for row in told),
        "rounds": rounds,
    }


def over_optimised(proxy: Row, gold: Row) -> bool:
    """The proxy rose, and gold, with prompts enough to see it, did not."""
    return bool((proxy["low"] or 0) > 0 and gold["n"] >= LEAST_PROMPTS and gold["low"] <= 0)


def _gain(row: Row) -> dict[str, Any]:
    return {key: row[key] for key in ("mean", "low", "high", "n")}


def _of_proxy(question: Question, row: Row) -> str:
    gains = [
        f"{signed(row[key]['mean'])}, {interval(row[key], signed)}" for key in ("proxy", "gold")
    ]
    figures = (
        f"By {question.training}, which made pairs, {row['model']} gained {gains[0]};"
        f" by {row['scorer']}, which made none, {gains[1]}."
    )
    pleased = f"{figures} It {pleases(question.training or '', row['gold'])}."
    return pleased if row["over_optimised"] else figures


def ceiling(question: Question, differences: Sequence[Row]) -> dict[str, Any] | None:
    """How much of what the best of n SFT answers gain the chosen model gained, by the scorer of the verdict."""
    own = [row for row in differences if row["scorer"] == question.scorer]
    best = next((row for row in own if row["model"].startswith(BEST_OF_PREFIX)), None)
    if best is None:
        return None
    chosen = next((row for row in own if row["model"] == question.chosen), None)
    known = chosen and chosen["mean"] is not None and best["low"] is not None and best["low"] > 0
    return {
        "model": best["model"],
        **_gain(best),
        "share": chosen["mean"] / best["mean"] if chosen and known else None,
    }
