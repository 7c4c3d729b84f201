"""The tables of how the models came to be: prompts, samples, training, and what it cost."""

from collections.abc import Iterator, Mapping

from pipeline.progress import PHASES
from pipeline.report.formatting import (
    ReportRow,
    format_count,
    format_duration,
    format_number,
    format_share,
)
from pipeline.report.render.table import Cell, ReportTable, join_details


def build_prompts(report: ReportRow) -> ReportTable:
    funnel = report["funnel"]["prompts"] or {"in": 0, "dropped": {}, "out": {}}
    dropped = [(f"− {reason}", n) for reason, n in funnel["dropped"].items()]
    counts = [("in", funnel["in"]), *dropped, *funnel["out"].items()]
    rows = [[Cell(name), Cell(format_count(n))] for name, n in counts] if funnel["in"] else []
    note = "What came in, what was left out and why, and what each split holds."
    return ReportTable("Prompts", note, ("part", "prompts"), rows)


def build_samples(report: ReportRow) -> ReportTable:
    columns = (
        "step",
        "prompts",
        "dropped",
        "completions",
        "failed",
        "truncated",
        "stopped by string",
        "tokens",
    )
    rows = [_samples_row(samples) for samples in report["funnel"]["samples"]]
    return ReportTable("Samples", " ".join(_list_notes(report["funnel"])), columns, rows)


def _samples_row(samples: ReportRow) -> list[Cell]:
    completions, reasoning = samples["completions"], samples["reasoning_tokens"]
    truncated = samples["truncated"] / completions if completions else None
    detail = f"of which {format_number(reasoning, 1)} reasoning" if reasoning else ""
    return [
        Cell(_name_samples(samples)),
        Cell(format_count(samples["prompts"])),
        _reasons_cell(samples["dropped"]),
        Cell(format_count(completions)),
        _reasons_cell(samples["failed"]),
        Cell(format_share(truncated)),
        Cell(format_count(samples["stopped_by_string"])),
        Cell(format_number(samples["tokens"], 1), detail),
    ]


def _name_samples(samples: ReportRow) -> str:
    if isinstance(samples["label"], str):
        return samples["label"]
    model = f", {samples['model']}" if samples.get("model") else ""
    wave = f", wave {samples['wave']}" if samples["wave"] else ""
    return f"round {samples['label']}{model}{wave}"


def _reasons_cell(reasons: Mapping[str, int]) -> Cell:
    details = (f"{reason} {n}" for reason, n in reasons.items())
    return Cell(format_count(sum(reasons.values())), join_details(*details))


def _list_notes(funnel: ReportRow) -> Iterator[str]:
    yield (
        "What each sampling step requested and got. Prompts that are too long are dropped,"
        " never cut."
    )
    for samples in funnel["samples"]:
        if (gap := samples["quantization_difference"]) is not None:
            yield (
                f"{_name_samples(samples)}: sampled on the dequantised base;"
                f" mean |Δ log p| per token {format_number(gap, 4)} nats"
                " against the policy as it was trained."
            )


def build_ties(report: ReportRow) -> ReportTable:
    columns = ("round", "prompts", "tied", "all easy", "all hard")
    note = (
        "Prompts whose samples all have the same score make no pair, unless pair.ties=both. All"
        " easy: at the best score of any sample of the round; all hard: at the worst. With"
        " pair.filters.pass_rate: on one side of it."
    )
    rows = [_ties_row(pairs) for pairs in report["funnel"]["pairs"] if pairs["prompts_in"]]
    return ReportTable("Easy and hard prompts", note, columns, rows)


def _ties_row(pairs: ReportRow) -> list[Cell]:
    prompts, ties = pairs["prompts_in"], pairs["ties"]
    tied = Cell(format_count(ties["prompts"]), format_share(ties["prompts"] / prompts))
    easy, hard = (Cell(format_count(ties[which])) for which in ("all_easy", "all_hard"))
    return [Cell(f"round {pairs['round']}"), Cell(format_count(prompts)), tied, easy, hard]


def build_sources(report: ReportRow) -> ReportTable:
    columns = ("round", "source", "samples", "chosen", "rejected", "nats per token")
    note = (
        "Which model wrote the answers of the pairs. Nats per token are of its answers in the"
        " pairs under the reference model: the lower, the further they are from what the policy"
        " writes."
    )
    rows = [
        _source_row(pairs, source, counts)
        for pairs in report["funnel"]["pairs"]
        for source, counts in pairs.get("sources", {}).items()
    ]
    return ReportTable("Sources of the pairs", note, columns, rows)


def _source_row(pairs: ReportRow, source: str, counts: ReportRow) -> list[Cell]:
    shares = [
        Cell(format_count(counts[side]), format_share(counts[side] / max(pairs["pairs"], 1)))
        for side in ("chosen", "rejected")
    ]
    nats = Cell(format_number(counts["nats_per_token"], 2))
    samples = Cell(format_count(counts["samples"]))
    return [Cell(f"round {pairs['round']}"), Cell(source), samples, *shares, nats]


def _describe_ending(row: ReportRow) -> str:
    """What a guard changed; a report of an earlier version does not have it."""
    if not row.get("stopped"):
        return ""
    return f"of {row['planned']} planned; published: step {row['kept']}; {row['stopped']}"


def build_training(report: ReportRow) -> ReportTable:
    figures = ("loss", "margin", "accuracy")
    rows = [
        [
            Cell(row["round"]),
            Cell(format_count(row["steps"]), _describe_ending(row)),
            *(Cell(format_number(row[figure])) for figure in figures),
        ]
        for row in report["training"]
    ]
    note = (
        "The mean over the last tenth of each round's batches up to the published weights, as the"
        " trainer logged them."
    )
    return ReportTable("Training", note, ("round", "steps", *figures), rows)


def build_effort(report: ReportRow) -> ReportTable:
    """Only where a round trained online, and samples and scores are no Steps of their own."""
    own = report["evaluation"]["scorer"]
    gains = {row["model"]: row for row in report["differences"] if row["scorer"] == own}
    columns = ("round", "by", "answers drawn", "time", "of it training", "gain over sft", "resumes")
    rows = [
        [
            Cell(row["round"]),
            Cell(row["trainer"], row["loss"]),
            Cell(format_count(row["samples"])),
            Cell(format_duration(row["seconds"])),
            Cell(format_duration(row["training_seconds"])),
            _gain_cell(gains.get(row["round"])),
            Cell(row["resumes"]),
        ]
        for row in report.get("effort", [])
    ]
    note = (
        "At what price each round came: answers to training prompts, and the time of all its"
        " stages. Online training samples and scores while it trains. Compare rounds that start"
        " from the same model (init=sft), at equal answers or at equal time."
    )
    return ReportTable("Answers and time of each round", note, columns, rows)


def _gain_cell(gain: ReportRow | None) -> Cell:
    if gain is None:
        return Cell("")
    bounds = f"{format_number(gain['low'])} to {format_number(gain['high'])}"
    return Cell(format_number(gain["mean"]), bounds)


def build_cost(report: ReportRow) -> ReportTable:
    total = sum(row["seconds"] for row in report["cost"])
    columns = ["stage", "steps", "time", "share", *PHASES, "models opened", "tokens", "tokens/s"]
    if any(row["money"] for row in report["cost"]):
        columns.append("money")
    rows = [_stage_row(row, total)[: len(columns)] for row in report["cost"]]
    note = (
        f"{format_duration(total)} in total; a reused step counts with the time of its building."
        " Start is from the request of a step to its stage; load opens models; wait is for locks"
        " and servers. Sampling's tokens/s exclude start and load."
    )
    return ReportTable("Cost", note, columns, rows)


def _stage_row(row: ReportRow, total: float) -> list[Cell]:
    phases = row["phases"] or {}
    figures = (
        str(len(row["steps"])),
        format_duration(row["seconds"]),
        format_share(row["seconds"] / total if total else None),
        *(format_duration(phases.get(phase)) for phase in PHASES),
        format_count(row["models_opened"]),
        format_count(row["tokens"]),
        format_count(row["tokens_per_second"]),
        format_number(row["money"], 2),
    )
    return [Cell(row["stage"]), *map(Cell, figures)]
