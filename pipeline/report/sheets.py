"""The report's tables as rows of text, made from report.json alone, for the page and for the model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import CONTROL
from pipeline.report.wording import UNKNOWN, count, interval, level_text, number, p_value, seconds, share, signed

Row = Mapping[str, Any]
STEADY = 0.15, 0.85  # plain win rates outside of which the length-adjusted one bends
UNMARKED = {"mean": None, "low": None, "high": None, "n": 0, "failed": 0}


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Sheet:
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    chosen: str | None = None


def all_sheets(report: Row) -> list[Sheet]:
    made = (
        models(report),
        habits(report),
        kinds(report),
        slices(report),
        proxy(report),
        duels(report),
        prompts(report),
        samples(report),
        training(report),
    )
    return [sheet for sheet in made if sheet.rows]


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
    steady = control["why"] if control and control["stable"] is not False else ""  # else it stands at the top
    return " ".join(text for text in (shown, _power(report), steady, _captured(report)) if text)


def _power(report: Row) -> str:
    """The chosen model's smallest detectable difference, or that of the last one that was held against sft."""
    exam = report["exam"]
    known = [gap for gap in report["differences"] if gap["scorer"] == exam["scorer"] and gap["detectable"] is not None]
    of = next((gap for gap in known if gap["model"] == exam["chosen"]), known[-1] if known else None)
    if of is None:
        return "How small a difference so many can detect is not known without scores of two models."
    return f"So many can detect a difference of {number(of['detectable'])} in four cases of five."


def _captured(report: Row) -> str:
    best = report["ceiling"]
    if best is None:
        return ""
    if best["share"] is None:
        return f"Even {best['model']} is not clearly better than sft: there is nothing to capture."
    return f"Of what {best['model']} gains over sft, {report['exam']['chosen']} gains {share(best['share'])}."


def _model(report: Row, model: Row, scorer: str) -> list[Cell]:
    mark, kl, tokens = model["metrics"].get(scorer, UNMARKED), model["kl"], model["tokens"]
    failed = f"{count(mark['failed'])} without score" if mark["failed"] else ""
    gap = next((row for row in report["differences"] if _is(row, model["name"], scorer)), None)
    return [
        Cell(model["name"]),
        Cell(number(mark["mean"]), _detail(interval(mark), failed)),
        _gap(report, model["name"], scorer),
        Cell(p_value(gap["p_holm"]) if gap else UNKNOWN),
        _sides(gap),
        Cell(number(tokens["mean"], 1), _detail(interval(tokens, lambda value: number(value, 1)))),
        Cell(number(kl["mean"], 2), _detail(interval(kl, lambda value: number(value, 2)))),
    ]


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
        "How they write", note, columns, [_habit(model, thinks) for model in report["models"]], report["exam"]["chosen"]
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
        Cell(share(strange["share"]), f"{count(strange['n'])} prompts" if strange["n"] else "texts too short"),
        Cell(share(opening["share"]), begun),
        *([Cell(number(model["reasoning"]["mean"], 1), "tokens")] if thinks else []),
    ]


def _gap(report: Row, model: str | None, scorer: str) -> Cell:
    gap = next((row for row in report["differences"] if _is(row, model, scorer)), None)
    if gap is None or gap["mean"] is None:
        return Cell(UNKNOWN)
    return _gain(gap)


def _gain(gap: Row, *more: str) -> Cell:
    tone = "up" if (gap["low"] or 0) > 0 else "down" if (gap["high"] or 0) < 0 else ""
    return Cell(signed(gap["mean"]), _detail(interval(gap, signed), *more), tone)


def _is(row: Row, model: str | None, scorer: str) -> bool:
    return (row["model"], row["scorer"]) == (model, scorer)


def _detail(*texts: str) -> str:
    return ", ".join(text for text in texts if text and text != UNKNOWN)


def kinds(report: Row) -> Sheet:
    """Every other scorer on its own scale, and every kind of the primary one, over the prompts it applies to."""
    exam, listed = report["exam"], _listed(report)
    names = dict.fromkeys(name for model in listed for name in model["metrics"] if name != exam["scorer"])
    columns = (
        "scorer",
        "prompts",
        *(model["name"] for model in listed),
        *([f"Δ {exam['chosen']}"] if exam["chosen"] else []),
    )
    rows = [_kind(report, name) for name in names]
    return Sheet("Kind by kind", "What the score is made of, each over the prompts it applies to.", columns, rows)


def _kind(report: Row, name: str) -> list[Cell]:
    marks = [model["metrics"].get(name, UNMARKED) for model in _listed(report)]
    shown = name.removeprefix(f"{report['exam']['scorer']}/")
    means = [Cell(number(mark["mean"]), _detail(interval(mark))) for mark in marks]
    gap = [_gap(report, report["exam"]["chosen"], name)] if report["exam"]["chosen"] else []
    return [Cell(shown), Cell(count(max(mark["n"] for mark in marks))), *means, *gap]


def _listed(report: Row) -> list[Row]:
    """The models that a reader compares: the control has its sentence."""
    return [model for model in report["models"] if model["name"] != CONTROL]


def slices(report: Row) -> Sheet:
    """Where the chosen model gained and where it lost."""
    exam = report["exam"]
    models = [name for name in ("sft", exam["chosen"]) if name]
    note = f"{exam['scorer']} where a prompt's column has this value; p is corrected for the slices of a column."
    named: dict[str, dict[str, Row]] = {}
    for row in report["slices"]:
        named.setdefault(f"{row['column']}: {row['value']}", {})[row["model"]] = row
    columns = ("slice", "prompts", *models, "Δ over sft", "p")
    return Sheet("Slice by slice", note, columns, [_slice(name, of, models) for name, of in named.items()])


def _slice(name: str, of: dict[str, Row], models: Sequence[str]) -> list[Cell]:
    prompts = max(row["prompts"] for row in of.values())
    known = [of.get(model, UNMARKED) for model in models]
    means = [Cell(number(row["mean"]), _detail(interval(row))) for row in known]
    gain = known[-1].get("gain")
    if gain is None or gain["mean"] is None:
        return [Cell(name), Cell(count(prompts)), *means, Cell(UNKNOWN), Cell(UNKNOWN)]
    return [Cell(name), Cell(count(prompts)), *means, _gain(gain), Cell(p_value(gain["p_holm"]))]


def proxy(report: Row) -> Sheet:
    """What was optimised beside what was not."""
    told = report["proxy"]
    note = "A gain of the scorer that made the pairs, which one that made none does not share, is no gain."
    columns = ("model", f"Δ {told['training']}" if told else "", "gold scorer", "Δ gold", "KL to sft")
    rows = [
        [Cell(r["model"]), _gain(r["proxy"]), Cell(r["scorer"]), _gain(r["gold"]), Cell(number(r["kl"], 2))]
        for r in (told["rounds"] if told else [])
    ]
    return Sheet("Gold and proxy", note, columns, rows, report["exam"]["chosen"])


def duels(report: Row) -> Sheet:
    columns = ("contest", "judge", "win rate", "wins", "ties", "losses", "p", "length-adjusted", "flips", "failed")
    note = (
        "By the mean score on each prompt, or by a judge's verdicts that hold in both orders; a tie is half a win, "
        "p is the sign test's on decisive prompts, corrected for a judge's contests. Length-adjusted: were no answer "
        "longer than the other's; flips: prompts on which a judge changes its mind with the order."
    )
    return Sheet("Win, tie, loss", note, columns, [_duel(duel) for duel in report["duels"]])


def _duel(duel: Row) -> list[Cell]:
    tone = "up" if (duel["low"] or 0) > 0.5 else "down" if (duel["high"] or 1) < 0.5 else ""
    rate = Cell(share(duel["win_rate"]), _detail(interval(duel, share)), tone)
    counts = [Cell(count(duel[key])) for key in ("wins", "ties", "losses")]
    return [
        Cell(f"{duel['a']} against {duel['b']}"),
        Cell(duel["judge"]),
        rate,
        *counts,
        Cell(p_value(duel["p_holm"])),
        _adjusted(duel),
        Cell(share(duel["flip_rate"])),
        Cell(count(duel["failed"])),
    ]


def prompts(report: Row) -> Sheet:
    story = report["funnel"]["prompts"] or {"in": 0, "dropped": {}, "out": {}}
    counts = [("in", story["in"]), *((f"− {reason}", n) for reason, n in story["dropped"].items())]
    rows = [[Cell(name), Cell(count(n))] for name, n in (*counts, *story["out"].items())] if story["in"] else []
    return Sheet(
        "Prompts", "What came in, what was left out and why, and what each part holds.", ("part", "prompts"), rows
    )


def samples(report: Row) -> Sheet:
    columns = ("draw", "prompts", "dropped", "completions", "failed", "truncated", "stopped by string", "tokens")
    rows = [_draw(draw) for draw in report["funnel"]["samples"]]
    return Sheet("Samples", " ".join(_of_samples(report["funnel"])), columns, rows)


def _draw(draw: Row) -> list[Cell]:
    cut = draw["truncated"] / draw["completions"] if draw["completions"] else None
    thought = f"of which {number(draw['reasoning_tokens'], 1)} thinking" if draw["reasoning_tokens"] else ""
    return [
        Cell(_name_of(draw)),
        Cell(count(draw["prompts"])),
        _lost(draw["dropped"]),
        Cell(count(draw["completions"])),
        _lost(draw["failed"]),
        Cell(share(cut)),
        Cell(count(draw["stopped_by_string"])),
        Cell(number(draw["tokens"], 1), thought),
    ]


def _name_of(draw: Row) -> str:
    if isinstance(draw["label"], str):
        return draw["label"]
    return f"round {draw['label']}" + (f", wave {draw['wave']}" if draw["wave"] else "")


def _lost(reasons: Mapping[str, int]) -> Cell:
    return Cell(count(sum(reasons.values())), _detail(*(f"{reason} {n}" for reason, n in reasons.items())))


def _of_samples(funnel: Row) -> Iterator[str]:
    yield "What each draw asked for and got; prompts are dropped for their length, never cut."
    for pairs in funnel["pairs"]:
        if any(draw["wave"] and draw["label"] == pairs["round"] for draw in funnel["samples"]):
            easy, hard = (count(pairs["ties"][which]) for which in ("all_easy", "all_hard"))
            yield f"After round {pairs['round']}'s last wave {easy} prompts are all easy and {hard} all hard."
    for draw in funnel["samples"]:
        if (gap := draw["quantization_difference"]) is not None:
            yield (
                f"{_name_of(draw)}: sampled on the dequantised base; "
                f"mean |Δ log p| per token {number(gap, 4)} nats against the policy as it was trained."
            )


def _adjusted(duel: Row) -> Cell:
    """The curve bends towards the middle where one side wins nearly all."""
    rate = duel["length_adjusted"]
    warning = "read the plain rate" if rate is not None and not STEADY[0] <= duel["win_rate"] <= STEADY[1] else ""
    return Cell(share(rate), warning)


def training(report: Row) -> Sheet:
    columns = ("round", "steps", "loss", "margin", "accuracy")
    rows = [
        [Cell(r["round"]), Cell(count(r["steps"])), *(Cell(number(r[k])) for k in ("loss", "margin", "accuracy"))]
        for r in report["training"]
    ]
    return Sheet(
        "Training", "The mean over the last tenth of each round's batches, as the trainer logged them.", columns, rows
    )


def cost(report: Row) -> Sheet:
    total = sum(row["seconds"] for row in report["cost"])
    columns = ("stage", "steps", "time", "share", "engine start", "tokens", "tokens/s")
    rows = [_stage(row, total) for row in report["cost"]]
    note = (
        f"{seconds(total)} in all; what came from the store counts as when it was built."
        " Sampling's tokens/s are those of drawing, from the moment that an engine stood."
    )
    return Sheet("Cost", note, columns, rows)


def _stage(row: Row, total: float) -> list[Cell]:
    part = row["seconds"] / total if total else None
    figures = (
        str(len(row["steps"])),
        seconds(row["seconds"]),
        share(part),
        seconds(row["engine_start_seconds"]),
        count(row["tokens"]),
        count(row["tokens_per_second"]),
    )
    return [Cell(row["stage"]), *map(Cell, figures)]
