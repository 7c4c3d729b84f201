"""How scores and lengths are distributed: histograms, because a mean hides a second mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.analysis.aggregate import NO_SCORES
from pipeline.report.analysis.eval_results import SFT, EvalResult, mean_by_prompt
from pipeline.report.analysis.statistics import ByPrompt
from pipeline.report.formatting import fit_scale

BIN_COUNT = 12


def describe_distributions(
    results: Sequence[EvalResult], chosen: str | None, scorer: str
) -> list[dict[str, Any]]:
    """Of SFT and the chosen model, one number per prompt. A bin excludes its upper edge."""
    shown = [model for model in results if model.name in (SFT, chosen)]
    shown.sort(key=lambda model: model.name != SFT)
    scores = {model.name: model.scores.get(scorer, NO_SCORES).means for model in shown}
    tokens = {model.name: mean_by_prompt(model.answers, "tokens") for model in shown}
    histograms = _build_histogram("score", scores), _build_histogram("tokens", tokens)
    return [histogram for histogram in histograms if histogram]


def _build_histogram(what: str, by_model: Mapping[str, ByPrompt]) -> dict[str, Any] | None:
    known = {name: [*by_prompt.values()] for name, by_prompt in by_model.items() if by_prompt}
    if not known:
        return None
    everything = [value for values in known.values() for value in values]
    edges = list(fit_scale(everything, 0, 1, intervals=BIN_COUNT).ticks)
    counts = {
        name: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist()
        for name, values in known.items()
    }
    return {"what": what, "edges": edges, "prompts": counts}
