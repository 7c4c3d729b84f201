"""The primary score by the values of a prompt's column: where a model gained and where it lost."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError, suggest
from pipeline.report.analysis.aggregate import (
    NO_SCORES,
    describe_estimate,
    find_model,
)
from pipeline.report.analysis.eval_results import SFT, EvalResult
from pipeline.report.analysis.statistics import (
    BootstrapConfig,
    adjust_holm,
    estimate_difference,
    estimate_mean,
)

MAX_VALUES = 30  # of a column: a table of more slices shows nothing
NO_VALUE = "–"


def describe_slices(
    columns: Sequence[str],
    by_prompt: Mapping[str, Mapping[str, Any]],
    results: Sequence[EvalResult],
    scorer: str,
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    """A row for each column, value and model. One column's differences to SFT are one family.

    `by_prompt` has each prompt's columns.
    """
    return [
        row
        for column in columns
        for row in _describe_column(column, by_prompt, results, scorer, bootstrap)
    ]


def _describe_column(
    column: str,
    by_prompt: Mapping[str, Mapping[str, Any]],
    results: Sequence[EvalResult],
    scorer: str,
    bootstrap: BootstrapConfig,
) -> list[dict[str, Any]]:
    sft = find_model(results, SFT)
    rows = [
        _describe_slice(column, value, ids, model, sft, scorer, bootstrap)
        for value, ids in group_by_value(column, by_prompt).items()
        for model in results
    ]
    adjusted = adjust_holm([row["gain"]["p_value"] if row["gain"] else None for row in rows])
    for row, p_holm in zip(rows, adjusted, strict=True):
        if row["gain"]:
            row["gain"]["p_holm"] = p_holm
    return rows


def group_by_value(column: str, by_prompt: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Prompt ids by the column's value, largest slice first; prompts without it under a dash."""
    known = sorted({name for columns in by_prompt.values() for name in columns})
    if by_prompt and column not in known:
        raise UserError(
            f"evaluate.slices: no prompt has the column {column}. {suggest(column, known)}"
        )
    slices: dict[str, list[str]] = {}
    for prompt, columns in by_prompt.items():
        slices.setdefault(_format_value(columns.get(column)), []).append(prompt)
    if len(slices) > MAX_VALUES:
        raise UserError(
            f"evaluate.slices: {column} has {len(slices)} values among these prompts;"
            f" a table of more than {MAX_VALUES} shows nothing. Give a column with few values."
        )
    return dict(sorted(slices.items(), key=lambda item: (-len(item[1]), item[0])))


def _format_value(value: Any) -> str:
    if value is None:
        return NO_VALUE
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )


def _describe_slice(
    column: str,
    value: str,
    ids: Sequence[str],
    model: EvalResult,
    sft: EvalResult | None,
    scorer: str,
    bootstrap: BootstrapConfig,
) -> dict[str, Any]:
    own = _select_means(model, scorer, ids)
    mean = estimate_mean([*own.values()], bootstrap)
    row = {
        "column": column,
        "value": value,
        "prompts": len(ids),
        "model": model.name,
        **describe_estimate(mean),
    }
    if sft is None or model is sft:
        return {**row, "gain": None}
    difference = estimate_difference(own, _select_means(sft, scorer, ids), len(ids), bootstrap)
    gain = {
        **describe_estimate(difference.estimate),
        "detectable": difference.detectable,
        "p_value": difference.p_value,
    }
    return {**row, "gain": gain}


def _select_means(model: EvalResult, scorer: str, ids: Sequence[str]) -> dict[str, float]:
    means = model.scores.get(scorer, NO_SCORES).means
    return {key: means[key] for key in ids if key in means}
