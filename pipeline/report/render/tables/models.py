"""The tables of what the models do: their scores, how they write, where they gained, and gold beside proxy."""

from collections.abc import Sequence

from pipeline.config import CONTROL
from pipeline.report.analysis.eval_results import SFT
from pipeline.report.analysis.verdict import detectable, is_flat
from pipeline.report.formatting import (
    NO_SPREAD,
    UNKNOWN,
    Row,
    count,
    interval,
    level_text,
    number,
    p_value,
    share,
    signed,
)
from pipeline.report.render.table import UNMARKED, Cell, Sheet, detail, gain, gap_of, row_of


def models(report: Row) -> Sheet:
    exam = report["exam"]
    columns = (
        "model",
        exam["scorer"],
        "Δ over sft",
        "p",
        "better · same · worse",
        "tokens",
        "KL to sft",
    )
    rows = [_model(report, model, exam["scorer"]) for model in report["models"]]
    return Sheet("Models", _how_sure(report), columns, rows, exam["chosen"])


def _how_sure(report: Row) -> str:
    exam = report["exam"]
    shown = f"{count(exam['prompts'])} {exam['split']} prompts; with each mean its {level_text(exam['level'])}."
    control = report["control"]
    steady = (
        control["why"] if control and control["stable"] is not False else ""
    )  # else it stands at the top
    return " ".join(text for text in (shown, _power(report), steady, _captured(report)) if text)


def _power(report: Row) -> str:
    """The chosen model's smallest detectable difference, or that of the last one that was held against sft."""
    exam = report["exam"]
    known = [
        gap
        for gap in report["differences"]
        if gap["scorer"] == exam["scorer"] and gap["detectable"] is not None
    ]
    of = next(
        (gap for gap in known if gap["model"] == exam["chosen"]), known[-1] if known else None
    )
    most = max(
        (gap["n"] for gap in report["differences"] if gap["scorer"] == exam["scorer"]), default=0
    )
    if (of is None or is_flat(of)) and most > 1:
        return NO_SPREAD
    if of is None:
        without = "from the scores of one prompt" if most else "without scores of two models"
        return f"How small a difference so many can detect is not known {without}."
    who = (
        "So many"
        if of["n"] == exam["prompts"]
        else f"The {count(of['n'])} on which {of['model']} and sft have scores"
    )
    return f"{who} can detect a difference of {detectable(of)} in four cases of five."


def _captured(report: Row) -> str:
    best = report["ceiling"]
    if best is None:
        return ""
    if best["share"] is None and (best["low"] or 0) > 0:
        return (
            f"{best['model']} gains {signed(best['mean'])} over sft: so much there is to capture."
        )
    if best["share"] is None:
        return f"{best['model']} is not clearly better than sft: how much there is to capture is not known."
    part = share(best["share"]) if best["share"] > 0 else "nothing"
    return f"Of what {best['model']} gains over sft, {report['exam']['chosen']} gains {part}."


def _model(report: Row, model: Row, scorer: str) -> list[Cell]:
    mark, kl, tokens = model["metrics"].get(scorer, UNMARKED), model["kl"], model["tokens"]
    failed = f"{count(mark['failed'])} without score" if mark["failed"] else ""
    gap = row_of(report, model["name"], scorer)
    return [
        Cell(model["name"]),
        Cell(number(mark["mean"]), detail(interval(mark), failed)),
        gap_of(report, model["name"], scorer),
        Cell(p_value(gap["p_holm"]) if gap else UNKNOWN),
        _sides(gap),
        Cell(number(tokens["mean"], 1), detail(interval(tokens, lambda value: number(value, 1)))),
        Cell(number(kl["mean"], 2), _drift(kl)),
    ]


def _drift(kl: Row) -> str:
    return (
        (kl["why"] or "")
        if kl["mean"] is None
        else detail(interval(kl, lambda value: number(value, 2)))
    )


def _sides(gap: Row | None) -> Cell:
    if gap is None or gap["better"] is None:
        return Cell(UNKNOWN)
    return Cell(" · ".join(f"{100 * gap[side]:.0f} %" for side in ("better", "same", "worse")))


def habits(report: Row) -> Sheet:
    """How they write, whatever the score."""
    thinks = any(model["reasoning"]["mean"] for model in report["models"])
    columns = (
        "model",
        "truncated",
        "repetition",
        "distinct-2",
        "refusals",
        "Markdown",
        "other language",
        "commonest opening",
        *(["reasoning"] if thinks else []),
    )
    note = "Shares of answers by prompt; distinct-2 is the share of all answers' word pairs that differ."
    return Sheet(
        "How they write",
        note,
        columns,
        [_habit(model, thinks) for model in report["models"]],
        report["exam"]["chosen"],
    )


def _habit(model: Row, thinks: bool) -> list[Cell]:
    opening, strange = model["opening"], model["other_language"]
    begun = f"“{opening['text']}”" if opening["text"] else ""
    return [
        Cell(model["name"]),
        Cell(share(model["truncated"])),
        Cell(share(model["repetition"])),
        Cell(number(model["distinct"]["2"])),
        Cell(share(model["refusals"])),
        Cell(share(model["markdown"])),
        Cell(
            share(strange["share"]),
            f"{count(strange['n'])} prompts" if strange["n"] else "texts too short",
        ),
        Cell(share(opening["share"]), begun),
        *([Cell(number(model["reasoning"]["mean"], 1), "tokens")] if thinks else []),
    ]


def kinds(report: Row) -> Sheet:
    """Every other scorer on its own scale, and every kind of the primary one, over the prompts it applies to."""
    exam, listed = report["exam"], _listed(report)
    names = dict.fromkeys(
        name for model in listed for name in model["metrics"] if name != exam["scorer"]
    )
    columns = (
        "scorer",
        "prompts",
        *(model["name"] for model in listed),
        *([f"Δ {exam['chosen']}"] if _apart(exam) else []),
    )
    rows = [_kind(report, name) for name in names]
    return Sheet(
        "Kind by kind",
        "What the score is made of, each over the prompts it applies to.",
        columns,
        rows,
    )


def _kind(report: Row, name: str) -> list[Cell]:
    marks = [model["metrics"].get(name, UNMARKED) for model in _listed(report)]
    shown = name.removeprefix(f"{report['exam']['scorer']}/")
    means = [Cell(number(mark["mean"]), detail(interval(mark))) for mark in marks]
    gap = [gap_of(report, report["exam"]["chosen"], name)] if _apart(report["exam"]) else []
    return [Cell(shown), Cell(count(max(mark["n"] for mark in marks))), *means, *gap]


def _apart(exam: Row) -> bool:
    """Whether the chosen model can differ from SFT at all."""
    return exam["chosen"] not in (None, SFT)


def _listed(report: Row) -> list[Row]:
    """The models that a reader compares: the control has its sentence."""
    return [model for model in report["models"] if model["name"] != CONTROL]


def slices(report: Row) -> Sheet:
    """Where the chosen model gained and where it lost."""
    exam = report["exam"]
    models = [SFT, exam["chosen"]] if _apart(exam) else [SFT]
    note = f"{exam['scorer']} where a prompt's column has this value; p is corrected for the slices of a column."
    named: dict[str, dict[str, Row]] = {}
    for row in report["slices"]:
        named.setdefault(f"{row['column']}: {row['value']}", {})[row["model"]] = row
    columns = ("slice", "prompts", *models, *(("Δ over sft", "p") if _apart(exam) else ()))
    return Sheet(
        "Slice by slice", note, columns, [_slice(name, of, models) for name, of in named.items()]
    )


def _slice(name: str, of: dict[str, Row], models: Sequence[str]) -> list[Cell]:
    prompts = max(row["prompts"] for row in of.values())
    known = [of.get(model, UNMARKED) for model in models]
    means = [Cell(number(row["mean"]), detail(interval(row))) for row in known]
    won = known[-1].get("gain")
    if models == [SFT]:
        return [Cell(name), Cell(count(prompts)), *means]
    if won is None or won["mean"] is None:
        return [Cell(name), Cell(count(prompts)), *means, Cell(UNKNOWN), Cell(UNKNOWN)]
    return [Cell(name), Cell(count(prompts)), *means, gain(won), Cell(p_value(won["p_holm"]))]


def proxy(report: Row) -> Sheet:
    """What was optimised beside what was not."""
    told = report["proxy"]
    note = (
        "A gain by the scorer that made pairs, which one that made none does not share, is no gain."
    )
    columns = (
        "model",
        f"Δ {told['training']}" if told else "",
        "gold scorer",
        "Δ gold",
        "KL to sft",
    )
    rows = [
        [
            Cell(r["model"]),
            gain(r["proxy"]),
            Cell(r["scorer"]),
            gain(r["gold"]),
            Cell(number(r["kl"], 2)),
        ]
        for r in (told["rounds"] if told else [])
    ]
    return Sheet("Gold and proxy", note, columns, rows, report["exam"]["chosen"])
