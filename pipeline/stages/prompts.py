"""Prompts in, four parts out: `train`, `dev`, `test` in hash order, and `decontamination`.

`decontamination` holds the n-grams of all evaluation prompts. Every row of the input is in a
part or in `dropped.parquet`; `funnel.json` has the counts.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import DROPPED_FILE, Prompts, note_cost, write_table
from pipeline.config import (
    EvaluationQuestions,
    InstructionPrompts,
    PlaygroundPrompts,
    PromptCaps,
    PromptsConfig,
    UserPrompts,
)
from pipeline.data import instructions, synthetic
from pipeline.data.decontamination import OverlapIndex, ngram_table
from pipeline.data.demonstrations import read_demonstrations
from pipeline.data.drop_log import BAD_ROW, DropLog, KeptAndDropped
from pipeline.data.duplicates import find_demonstrated, find_duplicates
from pipeline.data.prompt_checks import check_caps, check_split
from pipeline.data.prompts import (
    PROMPT_ROW,
    LeftOutColumn,
    PromptSet,
    build_prompt_row,
    read_prompts,
)
from pipeline.data.published_answers import (
    REFERENCE_COLUMN,
    find_question_id,
    read_reference_answers,
)
from pipeline.errors import StageError, UserError, pluralize, run_all
from pipeline.progress import Progress, print_note, print_warning

DROPPED = DropLog(prompt_id=pl.String).schema
BATCH = 4096
LeftOutColumns = dict[str, dict[str, LeftOutColumn]]  # by the knob of each set, by column


def run(cfg: PromptsConfig | EvaluationQuestions, out: Path, *, knob: str = "prompts") -> Prompts:
    if isinstance(cfg, EvaluationQuestions):
        return publish_questions(cfg, out, knob)
    read = read_sets(cfg)
    left_out = {
        f"prompts.{name}".removesuffix(".source"): found.left_out
        for name, found in read.items()
        if found.left_out
    }
    warn_left_out(left_out)
    sets = {name: read[f"evaluation.{name}"].rows for name in cfg.evaluation}
    log = DropLog(prompt_id=pl.String)
    rows = sort_by_hash(add_source(log, read.pop("source")), cfg.seed)
    check_split(cfg.split, rows.height)
    rows = log.record(drop_duplicates(rows, cfg.near_duplicate_threshold))
    rows = log.record(cap_categories(rows, cfg.caps))

    indexes = [build_index(cfg, sets)]
    rows = log.record(drop_overlaps(rows, indexes[0]))
    rows = put_held_out_first(cfg, rows)
    test, rows = hold_out_part(cfg, "test", read, rows, log)
    indexes.append(build_index(cfg, {"test": test}))
    rows = log.record(drop_overlaps(rows, indexes[1]))
    dev, rows = hold_out_part(cfg, "dev", read, rows, log)
    for index in indexes:  # a dev set from another file has not been compared yet
        dev = log.record(drop_overlaps(dev, index))
    indexes.append(build_index(cfg, {"dev": dev}))
    train = log.record(drop_overlaps(rows, indexes[2]))
    train = log.record(drop_demonstrated(cfg, train))

    parts = {"train": train, "dev": dev, "test": test}
    sizes = {name: part.height for name, part in parts.items()}
    funnel = log.publish(out, sizes, **describe_sets(sets, left_out))
    check_parts(cfg, parts, log, out / DROPPED_FILE)
    check_funnel(funnel)
    publish_parts(out, parts, log)
    ngrams = {ngram for index in indexes for ngram in index.ngrams}
    write_table(out / "decontamination" / "ngrams.parquet", ngram_table(ngrams))
    for line in format_lines(funnel):
        print_note(line)
    return Prompts(out)


def publish_questions(cfg: EvaluationQuestions, out: Path, knob: str) -> Prompts:
    """A set in its own order; a question that is there twice counts once."""
    read = read_prompts(cfg.rows, "prompts.evaluation")
    warn_left_out({"prompts.evaluation": read.left_out})
    rows = read.rows
    asked = rows.unique("prompt_id", keep="first", maintain_order=True)
    if cfg.references:
        chat = knob.removeprefix("prompts.evaluation.")
        asked = add_references(asked, cfg.references, f"evaluate.chats.{chat}.references")
    write_table(out / "test" / "prompts.parquet", asked.select("prompt_id", "prompt", "columns"))
    note_cost(out, prompts=asked.height, dropped=rows.height - asked.height)
    return Prompts(out)


def add_references(questions: pl.DataFrame, file: str, knob: str) -> pl.DataFrame:
    """The questions with their reference answers as the column `reference`, one for each turn."""
    answers = read_reference_answers(file, knob)
    texts, found = [], 0
    for prompt_id, asked, text in questions.select("prompt_id", "asked", "columns").iter_rows():
        columns = json.loads(text)
        names = find_question_id(columns), prompt_id, asked[0].strip()
        reference = next((answers[name] for name in names if name in answers), None)
        found += reference is not None
        known = columns if reference is None else {**columns, REFERENCE_COLUMN: reference}
        texts.append(json.dumps(known, sort_keys=True, ensure_ascii=False, allow_nan=False))
    if not found:
        raise UserError(
            f"{knob}={file}: none of its {pluralize(len(answers), 'answer')} is to one of these"
            " questions.\n"
            "  Answers name their question by question_id or uid, as the questions do, or by its"
            " text. Give the file of this benchmark."
        )
    print_note(f"{found} of {pluralize(len(texts), 'question')} have a reference answer")
    return questions.with_columns(columns=pl.Series(texts, dtype=pl.String))


def warn_left_out(left_out: LeftOutColumns) -> None:
    """Names every column that scorers and functions will not see."""
    for knob, columns in left_out.items():
        for name, column in columns.items():
            rows = pluralize(column.rows, "row")
            print_warning(
                f"{knob}: the column {name} is left out of {rows}:"
                f" at {column.place} it {column.why}."
                " No scorer sees it there; write it as text or numbers."
            )


def add_source(log: DropLog, read: PromptSet) -> pl.DataFrame:
    """The usable rows of a set; the others are dropped."""
    log.rows_in += read.rows.height + len(read.bad)
    for place, fault in read.bad:
        log.drop(BAD_ROW, fault, prompt_id=place)
    return read.rows


def read_sets(cfg: PromptsConfig) -> dict[str, PromptSet]:
    """The source and every other set, by their knobs. All faults are raised together."""
    others = {f"evaluation.{name}": rows for name, rows in cfg.evaluation.items()}
    others |= {f"split.{name}": rows for name, rows in cfg.split if not isinstance(rows, int)}
    reads = {"source": partial(read_source, cfg)}
    for name, rows in others.items():
        reads[name] = partial(read_prompts, rows, f"prompts.{name}")
    return dict(zip(reads, run_all(reads.values()), strict=True))


def read_source(cfg: PromptsConfig) -> PromptSet:
    match cfg:
        case PlaygroundPrompts():
            generated = synthetic.generate_prompts(cfg.rows, cfg.constraints, cfg.seed)
        case InstructionPrompts():
            generated = instructions.generate_prompts(cfg)
        case _:
            return read_prompts(cfg.prompt_rows, "prompts", cfg.on_bad_row)
    rows = [build_prompt_row(row["prompt"], row["columns"]) for row in generated]
    return PromptSet(pl.DataFrame(rows, schema=PROMPT_ROW))


# ── filters and splits ───────────────────────────────────────────────────────────────────────────


def sort_by_hash(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """By a hash of seed and text: the order for splits and rounds, whatever the file's order."""
    order = [hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in rows["hash"]]
    return (
        rows.with_columns(pl.Series("order", order, dtype=pl.String))
        .sort("order", "prompt_id", "columns")
        .drop("order")
    )


def drop_duplicates(rows: pl.DataFrame, near_duplicate: float | None) -> KeptAndDropped:
    duplicates = find_duplicates(rows, near_duplicate)
    return _remove_rows(rows, duplicates["at"]), duplicates


def cap_categories(rows: pl.DataFrame, caps: PromptCaps | None) -> KeptAndDropped:
    """The first rows of each category in hash order. Rows without a category are one category."""
    if caps is None:
        return rows, pl.DataFrame(schema=DROPPED)
    columns = [json.loads(text) for text in rows["columns"]]
    check_caps(caps, set().union(*columns))
    categories = pl.Series([json.dumps(each.get(caps.column)) for each in columns])
    named = rows.select("prompt_id", category=categories)
    place = pl.int_range(pl.len()).over("category")
    over = named.with_row_index("at").filter(place >= caps.max)
    detail = pl.format("{} has {} prompts before it in hash order", "category", pl.lit(caps.max))
    dropped = over.with_columns(reason=pl.lit("over the cap"), detail=detail)
    return _remove_rows(rows, over["at"]), dropped


def put_held_out_first(cfg: PromptsConfig, rows: pl.DataFrame) -> pl.DataFrame:
    """The prompts that dev and test take first: all with held-out families, and enough others.

    These are mixed by another hash. What is dropped later moves rows up and never down, so that no
    held-out family reaches train.
    """
    if not isinstance(cfg, InstructionPrompts):
        return rows
    names = (json.loads(columns)["families"] for columns in rows["columns"])
    is_held_out = pl.Series([name != instructions.TRAINED for name in names], dtype=pl.Boolean)
    taken = sum(wanted for _, wanted in cfg.split if isinstance(wanted, int))
    is_filler = (~is_held_out).cum_sum() <= taken - is_held_out.sum()
    first = is_held_out | is_filler
    return pl.concat([rows.filter(first).sort("hash"), rows.filter(~first)])


def hold_out_part(
    cfg: PromptsConfig, name: str, read: dict[str, PromptSet], rows: pl.DataFrame, log: DropLog
) -> KeptAndDropped:
    """An evaluation part, and the remaining rows: some of the rows, or a set of another file."""
    wanted = getattr(cfg.split, name)
    if isinstance(wanted, int):
        return rows.head(wanted), rows.slice(wanted)
    own = sort_by_hash(add_source(log, read[f"split.{name}"]), cfg.seed)
    return log.record(drop_duplicates(own, near_duplicate=None)), rows


def build_index(cfg: PromptsConfig, sets: dict[str, pl.DataFrame]) -> OverlapIndex:
    index = OverlapIndex(cfg.decontamination.ngram)
    for name, rows in sets.items():
        for prompt_id, turns in rows.select("prompt_id", "asked").iter_rows():
            index.add(name, prompt_id, turns)
    return index


def drop_overlaps(rows: pl.DataFrame, index: OverlapIndex) -> KeptAndDropped:
    """Drops the rows that share an n-gram with an evaluation prompt, and records which words."""
    if not index.ngrams:
        return rows, pl.DataFrame(schema=DROPPED)
    found, progress = [], Progress("prompts", rows.height, "prompts compared")
    for at, (prompt_id, texts) in enumerate(_prompt_texts(rows)):
        if match := index.find(texts):
            found.append(
                {
                    "at": at,
                    "prompt_id": prompt_id,
                    "reason": f"overlap with {match.part}",
                    "detail": f"{match.part} {match.prompt_id}: {match.words}",
                }
            )
        progress.advance()
    overlaps = pl.DataFrame(found, schema={"at": pl.UInt32, **DROPPED})
    return _remove_rows(rows, overlaps["at"]), overlaps


def drop_demonstrated(cfg: PromptsConfig, rows: pl.DataFrame) -> KeptAndDropped:
    """Drops the prompts that the demonstrations have answered already, where the config asks it."""
    if not isinstance(cfg, UserPrompts) or cfg.demonstrations is None or not cfg.exclude:
        return rows, pl.DataFrame(schema=DROPPED)
    lines = read_demonstrations(cfg.demonstrations, "prompts.demonstrations")
    turns = (
        [message["content"] for message in row["messages"] if message["role"] == "user"]
        for row in lines.rows
    )
    demonstrated = find_demonstrated(rows, turns)
    return _remove_rows(rows, demonstrated["at"]), demonstrated


def _prompt_texts(rows: pl.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """Texts that may come from elsewhere: the user's turns together, and each message."""
    for part in rows.select("prompt_id", "asked", "prompt").iter_slices(BATCH):
        for prompt_id, turns, messages in part.iter_rows():
            texts = ["\n".join(turns), *(message["content"] for message in messages)]
            yield prompt_id, list(dict.fromkeys(texts))


def _remove_rows(rows: pl.DataFrame, at: pl.Series) -> pl.DataFrame:
    return rows.with_row_index("at").filter(~pl.col("at").is_in(at.implode())).drop("at")


# ── output ───────────────────────────────────────────────────────────────────────────────────────


def check_parts(
    cfg: PromptsConfig, parts: dict[str, pl.DataFrame], log: DropLog, listed: Path
) -> None:
    wanted = {"train": 1, **{name: n if isinstance(n, int) else 1 for name, n in cfg.split}}
    short = [name for name, part in parts.items() if part.height < wanted[name]]
    if short:
        sizes = [f"{name} {part.height} (wanted {wanted[name]})" for name, part in parts.items()]
        raise UserError(
            f"prompts: after what was dropped ({log.describe()}) too few are left for"
            f" {' and '.join(short)}: {', '.join(sizes)}.\n"
            f"  Each one's reason is in {listed}. Give more prompts,"
            " or hold out fewer (prompts.split.test, prompts.split.dev; at least 1 each)."
        )


def publish_parts(out: Path, parts: dict[str, pl.DataFrame], log: DropLog) -> None:
    for name, part in parts.items():
        write_table(out / name / "prompts.parquet", part.select("prompt_id", "prompt", "columns"))
    prompts = sum(part.height for part in parts.values())
    note_cost(out, prompts=prompts, dropped=log.table().height)


def check_funnel(funnel: dict[str, Any]) -> None:
    """Rows in = rows out + rows dropped with a reason."""
    rows_in, rows_out, reasons = funnel["in"], funnel["out"], funnel["dropped"]
    if rows_in != sum(rows_out.values()) + sum(reasons.values()):
        raise StageError(
            f"prompts: {rows_in} rows came in, {rows_out} went out and {reasons} were dropped:"
            " some are unaccounted for"
        )


def describe_sets(sets: dict[str, pl.DataFrame], left_out: LeftOutColumns) -> dict[str, Any]:
    """For the funnel: the size of each evaluation set, and the columns left out."""
    found: dict[str, Any] = {"evaluation": {name: rows.height for name, rows in sets.items()}}
    if left_out:
        found["columns_left_out"] = {
            knob: {name: asdict(column) for name, column in columns.items()}
            for knob, columns in left_out.items()
        }
    return found


def format_lines(funnel: dict[str, Any]) -> list[str]:
    dropped = [(f"  − {reason}", count) for reason, count in funnel["dropped"].items()]
    rows = [("prompts in", funnel["in"]), *dropped, *funnel["out"].items()]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {count:>8}" for name, count in rows]
