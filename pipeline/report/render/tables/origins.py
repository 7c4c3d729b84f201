"""The tables of how the models came to be: prompts, samples, training, and what it cost."""

from collections.abc import Iterator, Mapping

from pipeline.report.formatting import Row, count, number, seconds, share
from pipeline.report.render.table import Cell, Sheet, detail


def prompts(report: Row) -> Sheet:
    story = report["funnel"]["prompts"] or {"in": 0, "dropped": {}, "out": {}}
    counts = [("in", story["in"]), *((f"− {reason}", n) for reason, n in story["dropped"].items())]
    rows = (
        [[Cell(name), Cell(count(n))] for name, n in (*counts, *story["out"].items())]
        if story["in"]
        else []
    )
    return Sheet(
        "Prompts",
        "What came in, what was left out and why, and what each part holds.",
        ("part", "prompts"),
        rows,
    )


def samples(report: Row) -> Sheet:
    columns = (
        "draw",
        "prompts",
        "dropped",
        "completions",
        "failed",
        "truncated",
        "stopped by string",
        "tokens",
    )
    rows = [_draw(draw) for draw in report["funnel"]["samples"]]
    return Sheet("Samples", " ".join(_of_samples(report["funnel"])), columns, rows)


def _draw(draw: Row) -> list[Cell]:
    cut = draw["truncated"] / draw["completions"] if draw["completions"] else None
    thought = (
        f"of which {number(draw['reasoning_tokens'], 1)} thinking"
        if draw["reasoning_tokens"]
        else ""
    )
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
    return Cell(
        count(sum(reasons.values())), detail(*(f"{reason} {n}" for reason, n in reasons.items()))
    )


def _of_samples(funnel: Row) -> Iterator[str]:
    yield "What each draw asked for and got; prompts are dropped for their length, never cut."
    for draw in funnel["samples"]:
        if (gap := draw["quantization_difference"]) is not None:
            yield (
                f"{_name_of(draw)}: sampled on the dequantised base; "
                f"mean |Δ log p| per token {number(gap, 4)} nats against the policy as it was trained."
            )


def ties(report: Row) -> Sheet:
    columns = ("round", "prompts", "alike", "all easy", "all hard")
    note = (
        "Prompts whose samples all score alike make no pair. All easy: at the best score of any sample of the round,"
        " all hard: at the worst; or on one side of pair.filters.pass_rate, where that is set."
    )
    rows = [_tied(pairs) for pairs in report["funnel"]["pairs"] if pairs["prompts_in"]]
    return Sheet("Easy and hard prompts", note, columns, rows)


def _tied(pairs: Row) -> list[Cell]:
    prompts, tied = pairs["prompts_in"], pairs["ties"]
    alike = Cell(count(tied["prompts"]), share(tied["prompts"] / prompts))
    easy, hard = (Cell(count(tied[which])) for which in ("all_easy", "all_hard"))
    return [Cell(f"round {pairs['round']}"), Cell(count(prompts)), alike, easy, hard]


def training(report: Row) -> Sheet:
    columns = ("round", "steps", "loss", "margin", "accuracy")
    rows = [
        [
            Cell(r["round"]),
            Cell(count(r["steps"])),
            *(Cell(number(r[k])) for k in ("loss", "margin", "accuracy")),
        ]
        for r in report["training"]
    ]
    return Sheet(
        "Training",
        "The mean over the last tenth of each round's batches, as the trainer logged them.",
        columns,
        rows,
    )


def cost(report: Row) -> Sheet:
    total = sum(row["seconds"] for row in report["cost"])
    names = ["stage", "steps", "time", "share", "engine start", "tokens", "tokens/s"]
    columns = (
        [*names, "money"] if any(row["money"] for row in report["cost"]) else names
    )  # where somebody was paid
    rows = [_stage(row, total)[: len(columns)] for row in report["cost"]]
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
        number(row["money"], 2),
    )
    return [Cell(row["stage"]), *map(Cell, figures)]
