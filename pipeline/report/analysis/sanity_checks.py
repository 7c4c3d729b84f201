"""Checks on the figures: SFT sampled again, a scorer that made no pairs, the best of n.

All are read from the rows of report.json; each is None where the evaluation has no such row.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.config import BEST_OF_PREFIX, CONTROL
from pipeline.report.analysis.verdict import MIN_PROMPTS, VerdictBasis, phrase_over_optimisation
from pipeline.report.formatting import (
    ReportRow,
    format_interval,
    format_p_value,
    format_share,
    format_signed,
)


def check_control(
    basis: VerdictBasis, differences: Sequence[ReportRow], duels: Sequence[ReportRow]
) -> dict[str, Any] | None:
    """SFT against itself: whatever finds a difference here measures noise."""
    own = [row for row in differences if row["model"] == CONTROL]
    own += [row for row in duels if row["a"] == CONTROL]
    if not own:
        return None
    tested = [row for row in own if row["p_holm"] is not None]
    significant = [row for row in tested if row["p_holm"] < 1 - basis.level]
    return {
        "stable": not significant if tested else None,
        "tests": len(tested),
        "why": _explain_control(tested, significant, basis.level),
    }


def _explain_control(
    tested: Sequence[ReportRow], significant: Sequence[ReportRow], level: float
) -> str:
    if not tested:
        return (
            "Sampled again, sft could not be compared with itself:"
            " its answers or its scores are missing."
        )
    if not significant:
        smallest = format_p_value(min(row["p_holm"] for row in tested))
        tests = "the one test" if len(tested) == 1 else f"any of {len(tested)} tests"
        return (
            f"Sampled again, sft cannot be distinguished from itself by {tests}"
            f" (smallest p {smallest})."
        )
    failed = "; ".join(_describe_test(row) for row in significant)
    return (
        f"Sampled again, sft differs from itself {failed}. The pipeline or the scorer is unstable,"
        f" unless chance did it, as in {format_share(1 - level)} of runs:"
        " trust no difference of this size before the cause is found."
    )


def _describe_test(row: ReportRow) -> str:
    p = format_p_value(row["p_holm"])
    if "judge" in row:
        return f"in {row['judge']}'s contests (win rate {format_share(row['win_rate'])}, p {p})"
    ends = format_interval(row, format_signed)
    return f"by {row['scorer']} ({format_signed(row['mean'])}, {ends}, p {p})"


def check_proxy(
    basis: VerdictBasis, models: Sequence[ReportRow], differences: Sequence[ReportRow]
) -> dict[str, Any] | None:
    """Round by round, the gain by the scorer that made the pairs and by each that made none."""
    if basis.training is None:
        return None
    gaps = {(row["model"], row["scorer"]): row for row in differences if row["n"]}
    rounds = []
    for model in models:
        for scorer in basis.gold:
            proxy = gaps.get((model["name"], basis.training))
            gold = gaps.get((model["name"], scorer))
            if model["name"].startswith("round-") and proxy and gold:
                rounds.append(_describe_round(model, scorer, proxy, gold))
    if not rounds:
        return None
    chosen = [row for row in rounds if row["model"] == basis.chosen]
    return {
        "training": basis.training,
        "over_optimised": any(row["over_optimised"] for row in chosen),
        "why": " ".join(_explain_proxy(basis, row) for row in chosen),
        "rounds": rounds,
    }


def _describe_round(
    model: ReportRow, scorer: str, proxy: ReportRow, gold: ReportRow
) -> dict[str, Any]:
    return {
        "model": model["name"],
        "scorer": scorer,
        "proxy": _select_gain(proxy),
        "gold": _select_gain(gold),
        "kl": model["kl"]["mean"],
        "over_optimised": is_over_optimised(proxy, gold),
    }


def is_over_optimised(proxy: ReportRow, gold: ReportRow) -> bool:
    """The proxy rose, and gold did not although it has enough prompts to show it."""
    return bool((proxy["low"] or 0) > 0 and gold["n"] >= MIN_PROMPTS and gold["low"] <= 0)


def _select_gain(row: ReportRow) -> dict[str, Any]:
    return {key: row[key] for key in ("mean", "low", "high", "n")}


def _explain_proxy(basis: VerdictBasis, row: ReportRow) -> str:
    proxy, gold = (_format_gain(row[key]) for key in ("proxy", "gold"))
    figures = (
        f"By {basis.training}, which made the pairs, {row['model']} differs from sft by {proxy};"
        f" by {row['scorer']}, which made none, {gold}."
    )
    if not row["over_optimised"]:
        return figures
    return f"{figures} It {phrase_over_optimisation(basis.training or '', row['gold'])}."


def _format_gain(gain: ReportRow) -> str:
    """One prompt has no interval."""
    ends = "" if gain["low"] is None else f", {format_interval(gain, format_signed)}"
    return f"{format_signed(gain['mean'])}{ends}"


def check_ceiling(basis: VerdictBasis, differences: Sequence[ReportRow]) -> dict[str, Any] | None:
    """The chosen model's gain as a share of the gain by the best of n SFT answers."""
    own = [row for row in differences if row["scorer"] == basis.scorer]
    best = next((row for row in own if row["model"].startswith(BEST_OF_PREFIX)), None)
    if best is None:
        return None
    chosen = next((row for row in own if row["model"] == basis.chosen), None)
    share = None
    if chosen and chosen["mean"] is not None and best["low"] is not None and best["low"] > 0:
        share = chosen["mean"] / best["mean"]
    return {"model": best["model"], **_select_gain(best), "share": share}
