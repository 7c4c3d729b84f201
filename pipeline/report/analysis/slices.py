"""The primary score by the values of a prompt's column: where a model gained and where it lost."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UserError, suggest
from pipeline.report.analysis.aggregate import NOT_ASKED, bounds, named
from pipeline.report.analysis.eval_results import SFT, EvalResult
from pipeline.report.analysis.statistics import BootstrapConfig, difference, estimate, holm

MOST = 30  # values of a column: more are no slices
NONE = "–"


def slices(
    columns: Sequence[str],
    told: Mapping[str, Mapping[str, Any]],
    examined: Sequence[EvalResult],
    scorer: str,
    draw: BootstrapConfig,
) -> list[dict[str, Any]]:
    """A row for each column, value and model; the differences to SFT of one column are one family."""
    return [row for column in columns for row in _of_column(column, told, examined, scorer, draw)]


def _of_column(
    column: str,
    told: Mapping[str, Mapping[str, Any]],
    examined: Sequence[EvalResult],
    scorer: str,
    draw: BootstrapConfig,
) -> list[dict[str, Any]]:
    prompts = by_value(column, told)
    rows = [
        _slice(column, value, ids, model, named(examined, SFT), scorer, draw)
        for value, ids in prompts.items()
        for model in examined
    ]
    counted = holm([row["gain"]["p_value"] if row["gain"] else None for row in rows])
    for row, p_holm in zip(rows, counted, strict=True):
        if row["gain"]:
            row["gain"]["p_holm"] = p_holm
    return rows


def by_value(column: str, told: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Prompt ids by what stands in a column, the largest slice first; a prompt without it stands under a dash."""
    known = sorted({name for columns in told.values() for name in columns})
    if told and column not in known:
        raise UserError(
            f"evaluate.slices: no prompt has the column {column}. {suggest(column, known)}"
        )
    found: dict[str, list[str]] = {}
    for prompt, columns in told.items():
        found.setdefault(_text(columns.get(column)), []).append(prompt)
    if len(found) > MOST:
        raise UserError(
            f"evaluate.slices: {column} has {len(found)} values among these prompts, and a table of more than {MOST} "
            "says nothing. Give a column with few values."
        )
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _text(value: Any) -> str:
    if value is None:
        return NONE
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )


def _slice(
    column: str,
    value: str,
    ids: Sequence[str],
    model: EvalResult,
    sft: EvalResult | None,
    scorer: str,
    draw: BootstrapConfig,
) -> dict[str, Any]:
    of_model, of_sft = (
        {
            key: each.marks.get(scorer, NOT_ASKED).means[key]
            for key in ids
            if key in each.marks.get(scorer, NOT_ASKED).means
        }
        if each
        else {}
        for each in (model, sft)
    )
    mean = estimate([*of_model.values()], draw)
    row = {
        "column": column,
        "value": value,
        "prompts": len(ids),
        "model": model.name,
        **bounds(mean),
        "n": mean.n,
    }
    if sft is None or model is sft:
        return {**row, "gain": None}
    found = difference(of_model, of_sft, len(ids), draw)
    gain = {
        **bounds(found.estimate),
        "n": found.estimate.n,
        "detectable": found.detectable,
        "p_value": found.p_value,
    }
    return {**row, "gain": gain}
