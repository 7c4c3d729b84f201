"""Prompts in, four parts out: `train`, `dev`, `test` in hash order, and `fence`, the n-grams of all
evaluation prompts.

Every row that came in is in a part or in `dropped.parquet`; `funnel.json` has the counts.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.artifacts import Prompts, note_cost, write_json, write_table
from pipeline.config import Caps, PlaygroundPrompts, PromptsConfig, Questions
from pipeline.data import synthetic
from pipeline.data.decontamination import OverlapIndex, ngram_table
from pipeline.data.duplicates import find_duplicates
from pipeline.data.prompt_checks import check_caps, check_split
from pipeline.data.prompts import (
    PROMPT_ROW,
    LeftOutColumn,
    PromptSet,
    build_prompt_row,
    read_prompts,
)
from pipeline.errors import StageError, UserError, many, together
from pipeline.progress import Progress

DROPPED = {"prompt_id": pl.String, "reason": pl.String, "detail": pl.String}
BATCH = 4096
LeftOutOf = dict[str, dict[str, LeftOutColumn]]  # by the knob of each set of prompts
Sorted = tuple[pl.DataFrame, pl.DataFrame]  # the rows that stay, and DROPPED of the others


def run(cfg: PromptsConfig | Questions, out: Path) -> Prompts:
    if isinstance(cfg, Questions):
        return questions(cfg, out)
    read = given(cfg)
    left_out = {
        f"prompts.{name}".removesuffix(".source"): one.left_out
        for name, one in read.items()
        if one.left_out
    }
    warn_left_out(left_out)
    sets = {name: read[f"evaluation.{name}"].rows for name in cfg.evaluation}
    account = Account()
    rows = in_hash_order(account.take(read.pop("source")), cfg.seed)
    check_split(cfg.split, rows.height)
    rows = account.keep(without_repeats(rows, cfg.near))
    rows = account.keep(capped(rows, cfg.caps))

    fences = [indexed(cfg, sets)]
    rows = account.keep(clear_of(rows, fences[0]))
    test, rows = held(cfg, "test", read, rows, account)
    fences.append(indexed(cfg, {"test": test}))
    rows = account.keep(clear_of(rows, fences[1]))
    dev, rows = held(cfg, "dev", read, rows, account)
    for fence in fences:  # a dev set of its own has not been compared yet
        dev = account.keep(clear_of(dev, fence))
    fences.append(indexed(cfg, {"dev": dev}))
    train = account.keep(clear_of(rows, fences[2]))

    parts = {"train": train, "dev": dev, "test": test}
    write_table(out / "dropped.parquet", account.dropped())
    check_parts(cfg, parts, account, out / "dropped.parquet")
    publish(out, parts, account)
    write_table(
        out / "fence" / "ngrams.parquet",
        ngram_table(set().union(*(fence.grams for fence in fences))),
    )
    write_json(out / "funnel.json", story := funnel(parts, account, sets, left_out))
    for line in lines(story):
        print("│", line, file=sys.stderr, flush=True)
    return Prompts(out)


def questions(cfg: Questions, out: Path) -> Prompts:
    """A set as it was given, in its own order; a question that stands there twice is one."""
    read = read_prompts(cfg.rows, "prompts.evaluation")
    warn_left_out({"prompts.evaluation": read.left_out})
    rows = read.rows
    asked = rows.unique("prompt_id", keep="first", maintain_order=True)
    write_table(out / "test" / "prompts.parquet", asked.select("prompt_id", "prompt", "columns"))
    note_cost(out, prompts=asked.height, dropped=rows.height - asked.height)
    return Prompts(out)


def warn_left_out(left_out: LeftOutOf) -> None:
    """Nothing goes silently: scorers and functions will not see these columns."""
    for knob, columns in left_out.items():
        for name, one in columns.items():
            rows = many(one.rows, "row")
            fault = (
                f"! {knob}: the column {name} is left out of {rows}: at {one.place} it {one.why}."
            )
            print(
                fault,
                "No scorer sees it there; write it as text or numbers.",
                file=sys.stderr,
                flush=True,
            )


class Account:
    """What came in and what was left out, with its reason."""

    def __init__(self) -> None:
        self.rows_in = 0
        self._dropped = [pl.DataFrame(schema=DROPPED)]

    def take(self, read: PromptSet) -> pl.DataFrame:
        self.rows_in += read.rows.height + len(read.bad)
        bad = [
            {"prompt_id": place, "reason": "bad row", "detail": fault} for place, fault in read.bad
        ]
        self._dropped.append(pl.DataFrame(bad, schema=DROPPED))
        return read.rows

    def keep(self, rows: Sorted) -> pl.DataFrame:
        kept, gone = rows
        self._dropped.append(gone.select(*DROPPED))
        return kept

    def dropped(self) -> pl.DataFrame:
        return pl.concat(self._dropped)

    def reasons(self) -> dict[str, int]:
        return dict(sorted(self.dropped()["reason"].value_counts().rows()))

    def told(self) -> str:
        return (
            ", ".join(f"{reason} {count}" for reason, count in self.reasons().items())
            or "nothing was dropped"
        )


def given(cfg: PromptsConfig) -> dict[str, PromptSet]:
    """The source and every set beside it, by their knobs; what is wrong with several of them is
    said at once."""
    sets = {f"evaluation.{name}": asked for name, asked in cfg.evaluation.items()}
    sets |= {f"split.{name}": asked for name, asked in cfg.split if not isinstance(asked, int)}
    beside = {name: partial(read_prompts, asked, f"prompts.{name}") for name, asked in sets.items()}
    reads = {"source": partial(source, cfg), **beside}
    return dict(zip(reads, together(reads.values()), strict=True))


def source(cfg: PromptsConfig) -> PromptSet:
    if isinstance(cfg, PlaygroundPrompts):
        made = synthetic.generate_prompts(cfg.rows, cfg.constraints, cfg.seed)
        return PromptSet(
            pl.DataFrame(
                [build_prompt_row(row["prompt"], row["columns"]) for row in made], schema=PROMPT_ROW
            )
        )
    return read_prompts(cfg.given, "prompts", cfg.on_bad_row)


# ── sorting ───────────────────────────────────────────────────────────────────────────────────────


def in_hash_order(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """By a hash of seed and text: the order that splits and rounds draw from, whatever the
    file's own order was."""
    order = [hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest() for digest in rows["hash"]]
    return (
        rows.with_columns(pl.Series("order", order, dtype=pl.String))
        .sort("order", "prompt_id", "columns")
        .drop("order")
    )


def without_repeats(rows: pl.DataFrame, near: float | None) -> Sorted:
    again = find_duplicates(rows, near)
    return _without(rows, again["at"]), again


def capped(rows: pl.DataFrame, caps: Caps | None) -> Sorted:
    """So many of each category, the first in hash order; rows without one are a category of
    their own."""
    if caps is None:
        return rows, pl.DataFrame(schema=DROPPED)
    columns = [json.loads(text) for text in rows["columns"]]
    check_caps(caps, set().union(*columns))
    named = rows.select(
        "prompt_id", category=pl.Series([json.dumps(each.get(caps.column)) for each in columns])
    )
    place = pl.int_range(pl.len()).over("category")
    over = named.with_row_index("at").filter(place >= caps.most)
    detail = pl.format("{} has {} prompts before it in hash order", "category", pl.lit(caps.most))
    return _without(rows, over["at"]), over.with_columns(
        reason=pl.lit("over the cap"), detail=detail
    )


def held(
    cfg: PromptsConfig, name: str, read: dict[str, PromptSet], rows: pl.DataFrame, account: Account
) -> Sorted:
    """An evaluation part, and what is left: so many of the rows, or a set of its own."""
    wanted = getattr(cfg.split, name)
    if isinstance(wanted, int):
        return rows.head(wanted), rows.slice(wanted)
    own = account.take(read[f"split.{name}"])
    return account.keep(without_repeats(in_hash_order(own, cfg.seed), near=None)), rows


def indexed(cfg: PromptsConfig, sets: dict[str, pl.DataFrame]) -> OverlapIndex:
    index = OverlapIndex(cfg.fence.ngram)
    for name, rows in sets.items():
        for prompt_id, asked in rows.select("prompt_id", "asked").iter_rows():
            index.add(name, prompt_id, asked)
    return index


def clear_of(rows: pl.DataFrame, index: OverlapIndex) -> Sorted:
    """The rows that share no n-gram with an evaluation prompt; and those that do, with which
    words of which prompt."""
    if not index.grams:
        return rows, pl.DataFrame(schema=DROPPED)
    found, progress = [], Progress("prompts", rows.height, "prompts compared")
    for at, (prompt_id, texts) in enumerate(_texts(rows)):
        if match := index.match(texts):
            detail = f"{match.of} {match.prompt_id}: {match.words}"
            found.append(
                {
                    "at": at,
                    "prompt_id": prompt_id,
                    "reason": f"overlap with {match.of}",
                    "detail": detail,
                }
            )
        progress.advance()
    near = pl.DataFrame(found, schema={"at": pl.UInt32, **DROPPED})
    return _without(rows, near["at"]), near


def _texts(rows: pl.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """What a prompt could have taken from elsewhere: the user's words as a whole, and each
    message."""
    for part in rows.select("prompt_id", "asked", "prompt").iter_slices(BATCH):
        for prompt_id, asked, messages in part.iter_rows():
            yield (
                prompt_id,
                list(
                    dict.fromkeys(["\n".join(asked), *(message["content"] for message in messages)])
                ),
            )


def _without(rows: pl.DataFrame, at: pl.Series) -> pl.DataFrame:
    return rows.with_row_index("at").filter(~pl.col("at").is_in(at.implode())).drop("at")


# ── the account ───────────────────────────────────────────────────────────────────────────────────


def check_parts(
    cfg: PromptsConfig, parts: dict[str, pl.DataFrame], account: Account, listed: Path
) -> None:
    wanted = {"train": 1, **{name: n if isinstance(n, int) else 1 for name, n in cfg.split}}
    short = [name for name, part in parts.items() if part.height < wanted[name]]
    if short:
        has = ", ".join(
            f"{name} {part.height} (wanted {wanted[name]})" for name, part in parts.items()
        )
        raise UserError(
            f"prompts: after what was dropped ({account.told()}) too few are left for {' and '.join(short)}: {has}.\n"
            f"  Each one's reason is in {listed}. Give more prompts, or lower prompts.split.test and prompts.split.dev."
        )


def publish(out: Path, parts: dict[str, pl.DataFrame], account: Account) -> None:
    for name, part in parts.items():
        write_table(out / name / "prompts.parquet", part.select("prompt_id", "prompt", "columns"))
    note_cost(
        out, prompts=sum(part.height for part in parts.values()), dropped=account.dropped().height
    )


def funnel(
    parts: dict[str, pl.DataFrame],
    account: Account,
    sets: dict[str, pl.DataFrame],
    left_out: LeftOutOf,
) -> dict[str, Any]:
    """Rows in = rows out + rows dropped with a reason; and how many prompts each evaluation set
    put up the fence."""
    reasons, rows_in = account.reasons(), account.rows_in
    rows_out = {name: part.height for name, part in parts.items()}
    if rows_in != sum(rows_out.values()) + sum(reasons.values()):
        raise StageError(
            f"prompts: {rows_in} rows came in, {rows_out} went out and {reasons} were dropped: some are unaccounted for"
        )
    evaluation = {name: rows.height for name, rows in sets.items()}
    told = {
        knob: {name: asdict(one) for name, one in columns.items()}
        for knob, columns in left_out.items()
    }
    counts = {"in": rows_in, "out": rows_out, "dropped": reasons, "evaluation": evaluation}
    return {**counts, "columns_left_out": told} if told else counts


def lines(story: dict[str, Any]) -> list[str]:
    dropped = [(f"  − {reason}", count) for reason, count in story["dropped"].items()]
    rows = [("prompts in", story["in"]), *dropped, *story["out"].items()]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {count:>8}" for name, count in rows]
