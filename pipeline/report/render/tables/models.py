"""The tables of what the models do: scores, style, where they gained, and gold against proxy."""

from collections.abc import Sequence

from pipeline.config import CONTROL
from pipeline.errors import pluralize
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.analysis.verdict import format_detectable, is_flat
from pipeline.report.formatting import (
    NO_SPREAD,
    UNKNOWN,
    ReportRow,
    explain_spread,
    format_count,
    format_interval,
    format_level,
    format_number,
    format_p_value,
    format_share,
    format_signed,
)
from pipeline.report.render.table import (
    NO_METRIC,
    Cell,
    ReportTable,
    difference_cell,
    find_difference,
    gain_cell,
    join_details,
)


def build_models(report: ReportRow) -> ReportTable:
    scorer, chosen = report["evaluation"]["scorer"], report["evaluation"]["chosen"]
    columns = (
        "model",
        scorer,
        "Δ over sft",
        "p",
        "better · same · worse",
        "tokens",
        "KL to sft",
    )
    rows = [_model_row(report, model, scorer) for model in report["models"]]
    return ReportTable("Models", _write_note(report), columns, rows, chosen)


def _write_note(report: ReportRow) -> str:
    evaluation, control = report["evaluation"], report["control"]
    count = evaluation["prompts"]
    intervals = f"; each mean has its {format_level(evaluation['level'])}" if count > 1 else ""
    basis = f"{pluralize(count, evaluation['split'] + ' prompt', grouped=True)}{intervals}."
    # An unstable control is at the top of the page instead.
    stable = control["why"] if control and control["stable"] is not False else ""
    texts = basis, _explain_power(report), stable, _describe_ceiling(report), _explain_noise(report)
    return " ".join(text for text in texts if text)


def _explain_power(report: ReportRow) -> str:
    """The smallest detectable difference of the chosen model, or of the last one compared."""
    evaluation = report["evaluation"]
    gaps = [row for row in report["differences"] if row["scorer"] == evaluation["scorer"]]
    known = [gap for gap in gaps if gap["detectable"] is not None]
    of_chosen = (gap for gap in known if gap["model"] == evaluation["chosen"])
    shown = next(of_chosen, known[-1] if known else None)
    if shown and "between" in shown:
        return ""  # the table of seeds says more
    most = max((gap["n"] for gap in gaps), default=0)
    if (shown is None or is_flat(shown)) and most > 1:
        return NO_SPREAD
    if shown is None:
        without = "from the scores of one prompt" if most else "without scores of two models"
        return f"How small a difference can be detected is not known {without}."
    prompts = (
        "This many prompts"
        if shown["n"] == evaluation["prompts"]
        else f"The {format_count(shown['n'])} on which {shown['model']} and sft have scores"
    )
    return f"{prompts} can detect a difference of {format_detectable(shown)} with 80 % power."


def _describe_ceiling(report: ReportRow) -> str:
    best = report["ceiling"]
    if best is None:
        return ""
    name, share = best["model"], best["share"]
    if share is None and (best["low"] or 0) > 0:
        return f"{name} gains {format_signed(best['mean'])} over sft: this much can be gained."
    if share is None:
        return f"{name} is not clearly better than sft: how much can be gained is not known."
    part = format_share(share) if share > 0 else "nothing"
    return f"Of what {name} gains over sft, {report['evaluation']['chosen']} gains {part}."


def _explain_noise(report: ReportRow) -> str:
    """Where the interval of a model's KL goes below 0, which a KL itself never does."""
    if not any((model["kl"]["low"] or 0) < 0 for model in report["models"]):
        return ""
    return (
        "A KL is estimated from sampled answers, so that noise can make it negative: one whose"
        " interval contains 0 may be 0."
    )


def _model_row(report: ReportRow, model: ReportRow, scorer: str) -> list[Cell]:
    metric, tokens = model["metrics"].get(scorer, NO_METRIC), model["tokens"]
    failed = f"{format_count(metric['failed'])} without score" if metric["failed"] else ""
    gap = find_difference(report, model["name"], scorer)
    token_ends = format_interval(tokens, lambda value: format_number(value, 1))
    return [
        Cell(model["name"]),
        Cell(format_number(metric["mean"]), join_details(format_interval(metric), failed)),
        difference_cell(report, model["name"], scorer),
        Cell(format_p_value(gap["p_holm"]) if gap else UNKNOWN),
        _sides_cell(gap),
        Cell(format_number(tokens["mean"], 1), join_details(token_ends)),
        Cell(format_number(model["kl"]["mean"], 2), _explain_kl(model["kl"])),
    ]


def _explain_kl(kl: ReportRow) -> str:
    if kl["mean"] is None:
        return kl["why"] or ""
    return join_details(format_interval(kl, lambda value: format_number(value, 2)))


def _sides_cell(gap: ReportRow | None) -> Cell:
    if gap is None or gap["better"] is None:
        return Cell(UNKNOWN)
    return Cell(" · ".join(f"{100 * gap[side]:.0f} %" for side in ("better", "same", "worse")))


def build_seeds(report: ReportRow) -> ReportTable:
    """The last round by each of its seeds, and their mean."""
    scorer, rows = report["evaluation"]["scorer"], report.get("replicates", [])
    names = dict.fromkeys(row["scorer"] for row in rows)
    columns = ("seed", scorer, *(f"Δ {name}" for name in names), "KL to sft")
    by_model: dict[str, dict[str, ReportRow]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["scorer"]] = row
    cells = [_seed_row(name, by_scorer, scorer) for name, by_scorer in by_model.items()]
    if not rows:
        return ReportTable("Seeds", "", columns, cells)
    first = rows[0]["model"]
    gaps = {name: find_difference(report, first, name) for name in names}
    [mean] = [model for model in report["models"] if model["name"] == first]
    metric = mean["metrics"].get(scorer, NO_METRIC)
    cells.append(
        [
            Cell("mean"),
            Cell(format_number(metric["mean"])),
            *(gain_cell(gap) if gap and gap["n"] else Cell(UNKNOWN) for gap in gaps.values()),
            Cell(format_number(mean["kl"]["mean"], 2)),
        ]
    )
    return ReportTable("Seeds", _write_seeds_note(first, gaps.get(scorer)), columns, cells)


def _write_seeds_note(first: str, gap: ReportRow | None) -> str:
    spread = f" {explain_spread(gap)}" if gap and "between" in gap else ""
    return (
        f"{first} trained again by other seeds, and its answers sampled by other seeds; all that"
        " its training read is the same. A seed's interval is over prompts, that of the mean over"
        f" seeds and prompts.{spread} In the other tables the scores and KL of {first} are this"
        " mean; its answers, contests, style and benchmarks are those of the first seed."
    )


def _seed_row(name: str, by_scorer: dict[str, ReportRow], scorer: str) -> list[Cell]:
    chief = by_scorer.get(scorer)
    gains = [{**row, "mean": row["gain"]} for row in by_scorer.values()]
    return [
        Cell(name),
        Cell(format_number(chief["score"] if chief else None)),
        *(gain_cell(gain) if gain["n"] else Cell(UNKNOWN) for gain in gains),
        Cell(format_number(gains[0]["kl"], 2)),
    ]


def build_habits(report: ReportRow) -> ReportTable:
    """Style, whatever the score."""
    with_reasoning = any(model["reasoning"]["mean"] for model in report["models"])
    columns = (
        "model",
        "truncated",
        "repetition",
        "distinct-2",
        "refusals",
        "Markdown",
        "other language",
        "commonest opening",
        *(["reasoning"] if with_reasoning else []),
    )
    note = (
        "Shares of answers by prompt; distinct-2 is the share of all answers' word pairs"
        " that differ."
    )
    rows = [_habit_row(model, with_reasoning) for model in report["models"]]
    return ReportTable("Style", note, columns, rows, report["evaluation"]["chosen"])


def _habit_row(model: ReportRow, with_reasoning: bool) -> list[Cell]:
    opening, other = model["opening"], model["other_language"]
    reasoning = Cell(format_number(model["reasoning"]["mean"], 1), "tokens")
    prompts = f"{format_count(other['n'])} prompts" if other["n"] else "texts too short"
    return [
        Cell(model["name"]),
        Cell(format_share(model["truncated"])),
        Cell(format_share(model["repetition"])),
        Cell(format_number(model["distinct"]["2"])),
        Cell(format_share(model["refusals"])),
        Cell(format_share(model["markdown"])),
        Cell(format_share(other["share"]), prompts),
        Cell(format_share(opening["share"]), f"“{opening['text']}”" if opening["text"] else ""),
        *([reasoning] if with_reasoning else []),
    ]


def build_criteria(report: ReportRow) -> ReportTable:
    """Every other scorer on its own scale, and every criterion over the prompts it applies to."""
    evaluation, models = report["evaluation"], _select_models(report)
    names = dict.fromkeys(
        name for model in models for name in model["metrics"] if name != evaluation["scorer"]
    )
    columns = (
        "scorer",
        "prompts",
        *(model["name"] for model in models),
        *([f"Δ {evaluation['chosen']}"] if _can_differ(evaluation) else []),
    )
    rows = [_criterion_row(report, name) for name in names]
    note = "The score's criteria and the other scorers, each over the prompts it applies to."
    return ReportTable("Criteria and other scorers", note, columns, rows)


def _criterion_row(report: ReportRow, name: str) -> list[Cell]:
    evaluation = report["evaluation"]
    metrics = [model["metrics"].get(name, NO_METRIC) for model in _select_models(report)]
    shown = name.removeprefix(f"{evaluation['scorer']}/")
    means = [
        Cell(format_number(metric["mean"]), join_details(format_interval(metric)))
        for metric in metrics
    ]
    gap = []
    if _can_differ(evaluation):
        gap = [difference_cell(report, evaluation["chosen"], name)]
    return [Cell(shown), Cell(format_count(max(metric["n"] for metric in metrics))), *means, *gap]


def _can_differ(evaluation: ReportRow) -> bool:
    """Whether the chosen model can differ from SFT at all."""
    return evaluation["chosen"] not in (None, SFT)


def _select_models(report: ReportRow) -> list[ReportRow]:
    """All but the control, which has its own sentence."""
    return [model for model in report["models"] if model["name"] != CONTROL]


def build_slices(report: ReportRow) -> ReportTable:
    """Where the chosen model gained and where it lost."""
    evaluation = report["evaluation"]
    can_differ = _can_differ(evaluation)
    models = [SFT, evaluation["chosen"]] if can_differ else [SFT]
    note = (
        f"{evaluation['scorer']} where a prompt's column has this value;"
        " p is corrected for the slices of a column."
    )
    by_slice: dict[str, dict[str, ReportRow]] = {}
    for row in report["slices"]:
        by_slice.setdefault(f"{row['column']}: {row['value']}", {})[row["model"]] = row
    columns = ("slice", "prompts", *models, *(("Δ over sft", "p") if can_differ else ()))
    rows = [_slice_row(name, by_model, models) for name, by_model in by_slice.items()]
    return ReportTable("Slice by slice", note, columns, rows)


def _slice_row(name: str, by_model: dict[str, ReportRow], models: Sequence[str]) -> list[Cell]:
    prompts = max(row["prompts"] for row in by_model.values())
    rows = [by_model.get(model, NO_METRIC) for model in models]
    means = [Cell(format_number(row["mean"]), join_details(format_interval(row))) for row in rows]
    cells = [Cell(name), Cell(format_count(prompts)), *means]
    if models == [SFT]:
        return cells
    gain = rows[-1].get("gain")
    if gain is None or gain["mean"] is None:
        return [*cells, Cell(UNKNOWN), Cell(UNKNOWN)]
    return [*cells, gain_cell(gain), Cell(format_p_value(gain["p_holm"]))]


def build_proxy(report: ReportRow) -> ReportTable:
    """What was optimised against what was not."""
    proxy = report["proxy"]
    note = (
        "A gain by the scorer that made the pairs is not real"
        " if a scorer that made none does not share it."
    )
    columns = (
        "model",
        f"Δ {proxy['training']}" if proxy else "",
        "gold scorer",
        "Δ gold",
        "KL to sft",
    )
    rows = [
        [
            Cell(row["model"]),
            gain_cell(row["proxy"]),
            Cell(row["scorer"]),
            gain_cell(row["gold"]),
            Cell(format_number(row["kl"], 2)),
        ]
        for row in (proxy["rounds"] if proxy else [])
    ]
    return ReportTable("Gold and proxy", note, columns, rows, report["evaluation"]["chosen"])
