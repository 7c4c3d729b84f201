"""The report's tables as rows of text, made from report.json alone, for the page and for the model card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.wording import UNKNOWN, count, interval, level_text, number, p_value, seconds, share, signed

Row = Mapping[str, Any]
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
    sheets = models(report), kinds(report), duels(report), prompts(report), samples(report), training(report)
    return [sheet for sheet in sheets if sheet.rows]


def models(report: Row) -> Sheet:
    exam = report["exam"]
    columns = (
        "model",
        exam["scorer"],
        "Δ over sft",
        "win · tie · loss",
        "tokens",
        "truncated",
        "repetition",
        "KL to sft",
    )
    rows = [_model(report, model, exam["scorer"]) for model in report["models"]]
    return Sheet("Models", _how_sure(report), columns, rows, exam["chosen"])


def _how_sure(report: Row) -> str:
    exam = report["exam"]
    smallest = next(
        (gap["detectable"] for gap in report["differences"] if _is(gap, exam["chosen"], exam["scorer"])), None
    )
    power = f" So many can detect a difference of {number(smallest)} in four cases of five." if smallest else ""
    return f"{count(exam['prompts'])} {exam['split']} prompts; with each mean its {level_text(exam['level'])}.{power}"


def _model(report: Row, model: Row, scorer: str) -> list[Cell]:
    mark, kl, tokens = model["metrics"].get(scorer, UNMARKED), model["kl"], model["tokens"]
    failed = f"{count(mark['failed'])} without score" if mark["failed"] else ""
    thought = f"of which {number(model['reasoning_tokens'], 1)} thinking" if model["reasoning_tokens"] else ""
    duel = next((d for d in report["duels"] if (d["a"], d["b"], d["judge"]) == (model["name"], "sft", scorer)), None)
    return [
        Cell(model["name"]),
        Cell(number(mark["mean"]), _detail(interval(mark), failed)),
        _gap(report, model["name"], scorer),
        Cell(f"{duel['wins']} · {duel['ties']} · {duel['losses']}", f"wins {share(duel['win_rate'])}")
        if duel
        else Cell(UNKNOWN),
        Cell(number(tokens["mean"], 1), _detail(interval(tokens, lambda value: number(value, 1)), thought)),
        Cell(share(model["truncated"])),
        Cell(share(model["repetition"])),
        Cell(number(kl["mean"], 2), _detail(interval(kl, lambda value: number(value, 2)))),
    ]


def _gap(report: Row, model: str | None, scorer: str) -> Cell:
    gap = next((row for row in report["differences"] if _is(row, model, scorer)), None)
    if gap is None or gap["mean"] is None:
        return Cell(UNKNOWN)
    tone = "up" if (gap["low"] or 0) > 0 else "down" if (gap["high"] or 0) < 0 else ""
    return Cell(signed(gap["mean"]), _detail(interval(gap, signed)), tone)


def _is(row: Row, model: str | None, scorer: str) -> bool:
    return (row["model"], row["scorer"]) == (model, scorer)


def _detail(*texts: str) -> str:
    return ", ".join(text for text in texts if text and text != UNKNOWN)


def kinds(report: Row) -> Sheet:
    """Every other scorer on its own scale, and every kind of the primary one, over the prompts it applies to."""
    exam, listed = report["exam"], report["models"]
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
    marks = [model["metrics"].get(name, UNMARKED) for model in report["models"]]
    shown = name.removeprefix(f"{report['exam']['scorer']}/")
    means = [Cell(number(mark["mean"]), _detail(interval(mark))) for mark in marks]
    gap = [_gap(report, report["exam"]["chosen"], name)] if report["exam"]["chosen"] else []
    return [Cell(shown), Cell(count(max(mark["n"] for mark in marks))), *means, *gap]


def duels(report: Row) -> Sheet:
    columns = ("contest", "judge", "win rate", "wins", "ties", "losses", "p", "failed")
    note = (
        "By the mean score on each prompt, or by a judge's verdicts that hold in both orders; a tie is half a win, "
        "p is the sign test's on decisive prompts."
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
        Cell(p_value(duel["p_value"])),
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
    columns = ("stage", "steps", "time", "share", "tokens", "tokens/s")
    rows = [_stage(row, total) for row in report["cost"]]
    return Sheet(
        "Cost", f"{seconds(total)} in all; what came from the store counts as when it was built.", columns, rows
    )


def _stage(row: Row, total: float) -> list[Cell]:
    part = row["seconds"] / total if total else None
    figures = (
        str(len(row["steps"])),
        seconds(row["seconds"]),
        share(part),
        count(row["tokens"]),
        count(row["tokens_per_second"]),
    )
    return [Cell(row["stage"]), *map(Cell, figures)]
